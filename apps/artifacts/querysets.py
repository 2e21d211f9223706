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
        """A person's own; staff see all. A bound API token sees those of its project only."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        rows = self if user.acts_as_staff else self.filter(created_by_id=user.pk)
        if user.token is not None and user.token.project_id is not None:
            rows = rows.filter(project_id=user.token.project_id)
        return rows
