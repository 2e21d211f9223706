"""Artifacts in the administration."""

from __future__ import annotations

from django.contrib import admin
from django.template.defaultfilters import filesizeformat

from apps.artifacts.models import Artifact, Blob, Upload
from apps.core.admin import ReadOnlyAdmin


@admin.register(Artifact)
class ArtifactAdmin(ReadOnlyAdmin):
    """What is stored, by project and kind."""

    list_display = ("id", "kind", "project", "size", "created_at")
    list_filter = ("kind", "project")
    list_select_related = ("project",)
    search_fields = ("path", "project__name")

    @admin.display(description="size", ordering="bytes")
    def size(self, artifact: Artifact) -> str:
        """Readable size."""
        return filesizeformat(artifact.bytes)


@admin.register(Blob)
class BlobAdmin(ReadOnlyAdmin):
    """Contents in the store; many artifacts may share one."""

    list_display = ("sha256", "bytes", "touched_at")
    search_fields = ("sha256",)


@admin.register(Upload)
class UploadAdmin(ReadOnlyAdmin):
    """Files on their way in."""

    list_display = ("path", "created_by", "bytes", "used_by", "expires_at", "created_at")
    list_select_related = ("created_by",)
    search_fields = ("path", "created_by__username")
