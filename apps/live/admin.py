"""Resident workers in the administration."""

from __future__ import annotations

from django.contrib import admin
from django.template.defaultfilters import filesizeformat

from apps.core.admin import ReadOnlyAdmin
from apps.live.models import ResidentWorker


@admin.register(ResidentWorker)
class ResidentWorkerAdmin(ReadOnlyAdmin):
    """Models in memory, where, and how much they take."""

    list_display = ("model", "state", "host", "pid", "memory", "started_at", "heartbeat_at", "error_code")
    list_filter = ("state", "host")
    list_select_related = ("model",)

    @admin.display(description="memory", ordering="memory_bytes")
    def memory(self, resident: ResidentWorker) -> str:
        """Readable size."""
        return filesizeformat(resident.memory_bytes) if resident.memory_bytes else ""
