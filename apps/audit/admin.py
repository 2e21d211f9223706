"""The audit log in the administration: read-only."""

from __future__ import annotations

from django.contrib import admin

from apps.audit.models import AuditEvent
from apps.core.admin import ReadOnlyAdmin


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    """Search and filter what people did."""

    list_display = ("at", "actor_name", "token_name", "action", "target_type", "target_name", "project_id")
    list_filter = ("action", "target_type")
    search_fields = ("actor_name", "token_name", "target_name", "target_id", "project_id")
    date_hierarchy = "at"
