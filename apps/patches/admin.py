"""Patches in the administration."""

from __future__ import annotations

from django.contrib import admin

from apps.core.admin import ReadOnlyInline, RecordAdmin
from apps.patches.models import Adapter, Certificate, Export, Patch, PatchVersion


class PatchVersionInline(ReadOnlyInline):
    """Versions of a patch."""

    model = PatchVersion
    fields = ("version", "change", "author", "enabled", "fingerprint", "created_at")
    readonly_fields = fields


@admin.register(Patch)
class PatchAdmin(RecordAdmin):
    """Patches of all projects."""

    list_display = ("name", "project", "model", "enabled", "version", "created_by", "updated_at")
    list_filter = ("enabled", "project")
    list_select_related = ("project", "model", "created_by")
    search_fields = ("name", "fingerprint")
    inlines = (PatchVersionInline,)


@admin.register(Export)
class ExportAdmin(RecordAdmin):
    """Exports of all projects."""

    list_display = ("__str__", "project", "target", "grade", "state", "gate", "created_by", "created_at")
    list_filter = ("target", "grade", "gate", "state", "project")
    list_select_related = ("project", "patch", "created_by")
    search_fields = ("patch__name", "fingerprint")


@admin.register(Certificate)
class CertificateAdmin(RecordAdmin):
    """Certificates of all exports."""

    list_display = ("__str__", "passed", "state", "created_at")
    list_filter = ("passed", "state")
    list_select_related = ("export__patch",)
    search_fields = ("export__patch__name",)


@admin.register(Adapter)
class AdapterAdmin(RecordAdmin):
    """Adapters of all projects."""

    list_display = ("name", "project", "model", "state", "created_by", "created_at")
    list_filter = ("state", "project")
    list_select_related = ("project", "model", "created_by")
    search_fields = ("name", "fingerprint")
