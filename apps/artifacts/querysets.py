"""Which artifacts a user may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from django.db import models

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.artifacts.models import Artifact, Upload  # noqa: F401


class ArtifactQuerySet(InProject["Artifact"]):
    """Artifacts of projects."""


class UploadQuerySet(models.QuerySet["Upload"]):
    """Uploads."""

    def visible_to(self, user: Any) -> Self:
        """A person's own; staff see all."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        return self if user.acts_as_staff else self.filter(created_by_id=user.pk)
