"""Which patches a user may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from django.db.models import Prefetch

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.patches.models import Adapter, Certificate, Export, Patch, PatchVersion  # noqa: F401


class PatchQuerySet(InProject["Patch"]):
    """Patches of projects."""

    def for_display(self) -> Self:
        """With what a list names."""
        return self.select_related("model", "created_by")


class PatchVersionQuerySet(InProject["PatchVersion"]):
    """Versions of patches of projects."""

    project_path = "patch__project"


class AdapterQuerySet(InProject["Adapter"]):
    """Adapters of projects."""

    def for_display(self) -> Self:
        """With what a list names."""
        return self.select_related("model", "created_by", "artifact")


class ExportQuerySet(InProject["Export"]):
    """Exports of projects."""

    def for_display(self) -> Self:
        """With what a list shows, and the certificates, newest first."""
        from apps.patches.models import Certificate

        newest = Certificate.objects.order_by("-id")
        return self.select_related(
            "patch", "artifact", "created_by", "overridden_by", "recording"
        ).prefetch_related(Prefetch("certificates", queryset=newest, to_attr="certificates_newest_first"))


class CertificateQuerySet(InProject["Certificate"]):
    """Certificates of exports of projects."""

    project_path = "export__project"
