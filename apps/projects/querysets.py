"""What a user may see. Every read path of the product goes through ``visible_to``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from django.apps import apps
from django.db import models

from apps.accounts.secrets import digest_of, secret_in
from apps.core import clock

if TYPE_CHECKING:
    from apps.projects.models import Invitation, Membership, Project  # noqa: F401

M = TypeVar("M", bound=models.Model)


class InProject(models.QuerySet[M]):
    """Rows that belong to a project, directly or through the relation named by ``project_path``."""

    project_path: ClassVar[str] = "project"

    def visible_to(self, user: Any) -> Self:
        """Rows of the user's projects; staff see all, nobody sees none. A bound API token sees its project only."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        rows = self
        if not user.sees_as_staff:
            memberships = apps.get_model("projects", "Membership")._default_manager
            mine = memberships.filter(user_id=user.pk).values("project_id")
            rows = rows.filter(**{f"{self.project_path}__in": mine})
        if user.token is not None and user.token.project_id is not None:
            rows = rows.filter(**{self.project_path: user.token.project_id})
        return rows


class ProjectQuerySet(InProject["Project"]):
    """Projects."""

    project_path = "pk"

    def with_role(self, user: Any) -> Self:
        """Adds ``role``, the user's role in each project, or None for staff looking in."""
        memberships = apps.get_model("projects", "Membership")._default_manager
        mine = memberships.filter(project_id=models.OuterRef("pk"), user_id=user.pk).values("role")
        return self.annotate(role=models.Subquery(mine[:1]))


class MembershipQuerySet(InProject["Membership"]):
    """Memberships of projects."""


class InvitationQuerySet(InProject["Invitation"]):
    """Invitations to projects."""

    def find(self, text: str) -> Invitation | None:
        """The open invitation with that secret."""
        rows = self.filter(digest=digest_of(secret_in(text)), state="open", expires_at__gt=clock.now())
        return rows.select_related("project", "created_by").first()
