"""Projects and memberships."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import models

from apps.core import clock
from apps.core.records import Record
from apps.projects.querysets import InvitationQuerySet, MembershipQuerySet, ProjectQuerySet


class Role(models.TextChoices):
    """What a member may do: see :mod:`apps.projects.policies`."""

    OWNER = "owner"
    EDITOR = "editor"
    VIEWER = "viewer"


class Project(Record):
    """A room of its own: everything else belongs to exactly one project."""

    EDITED = ("name", "description")

    name = models.CharField(max_length=120)
    slug = models.SlugField(max_length=80, unique=True)
    description = models.TextField(blank=True, max_length=4000)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    members = models.ManyToManyField(
        settings.AUTH_USER_MODEL, through="projects.Membership", related_name="projects"
    )

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.name


class Membership(Record):
    """A person's role in a project."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices)

    objects = MembershipQuerySet.as_manager()

    class Meta:
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "user"), name="membership_unique"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role_known"),
        )

    def __str__(self) -> str:
        return f"{self.user} ({self.role})"


def _invitation_end() -> object:
    return clock.now() + timedelta(days=settings.WORKBENCH_INVITATION_DAYS)


class Invitation(Record):
    """A role offered to an address. The secret of its link is enough to take it, until it ends."""

    class State(models.TextChoices):
        """What became of it."""

        OPEN = "open"
        ACCEPTED = "accepted"
        DECLINED = "declined"
        REVOKED = "revoked"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Role.choices)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField(default=_invitation_end)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    accepted_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    settled_at = models.DateTimeField(null=True, blank=True)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                models.functions.Lower("email"),
                "project",
                condition=models.Q(state="open"),
                name="invitation_one_open_per_address",
            ),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role_known"),
        )

    def __str__(self) -> str:
        return f"{self.email} ({self.role})"

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at <= clock.lately()


class Quota(Record):
    """Limits of one project or one person that differ from the site's. Empty: the site's; 0: none."""

    project = models.OneToOneField(
        Project, null=True, blank=True, on_delete=models.CASCADE, related_name="quota"
    )
    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.CASCADE, related_name="quota"
    )
    storage_bytes = models.PositiveBigIntegerField(null=True, blank=True)
    queued_jobs = models.PositiveIntegerField(null=True, blank=True)
    running_jobs = models.PositiveIntegerField(null=True, blank=True)
    compute_seconds = models.PositiveBigIntegerField(null=True, blank=True, help_text="In 30 days.")
    live_sessions = models.PositiveIntegerField(null=True, blank=True)

    class Meta:
        constraints = (
            models.CheckConstraint(
                condition=models.Q(project__isnull=True, user__isnull=False)
                | models.Q(project__isnull=False, user__isnull=True),
                name="quota_of_project_or_user",
                violation_error_message="Choose a project or a person, not both.",
            ),
        )

    def __str__(self) -> str:
        return f"limits of {self.project or self.user}"
