"""People, and the API tokens they act through."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.db.models.functions import Lower

from apps.accounts.scopes import Scope
from apps.core import clock
from apps.core.ids import uuid7
from apps.core.publish import publish_on_commit, user_group
from apps.core.records import Record


class User(AbstractUser):
    """A person. Signs in with the user name or the e-mail address; both are unique whatever their case."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField("e-mail address")

    # The token a request came with; it narrows everything the person may see and do. None for a browser session.
    token: ApiToken | None = None

    class Meta(AbstractUser.Meta):
        constraints = (
            models.UniqueConstraint(
                Lower("email"),
                name="user_email_unique",
                violation_error_message="This e-mail address is taken.",
            ),
            models.UniqueConstraint(
                Lower("username"), name="user_username_unique", violation_error_message="This name is taken."
            ),
        )

    @property
    def acts_as_staff(self) -> bool:
        """Whether staff rights count in this request: a token needs the ``admin`` scope for that."""
        return self.is_staff and (self.token is None or Scope.ADMIN in self.token.scopes)

    @property
    def sees_as_staff(self) -> bool:
        """Whether membership does not matter for what exists: to staff, and to a token that staff have bound to one
        project, which may do there what its scopes say and sees nothing else."""
        return self.acts_as_staff or (
            self.is_staff and self.token is not None and self.token.project_id is not None
        )

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Store the person; a new password ends every open live connection of theirs."""
        # set_password leaves the new one here until it is saved
        password_changed = getattr(self, "_password", None) is not None and not self._state.adding
        super().save(*args, **kwargs)
        if password_changed:
            publish_on_commit(user_group(self.pk), {"type": "session.ended", "session": None})


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    """Tokens."""

    def usable(self) -> ApiTokenQuerySet:
        """Neither revoked nor expired, of people who may sign in."""
        now = clock.now()
        return self.filter(
            models.Q(expires_at=None) | models.Q(expires_at__gt=now), revoked_at=None, user__is_active=True
        )


class ApiToken(Record):
    """A key for programs. Only a digest of its secret is stored; ``key`` finds the row and may be shown.

    ``project`` binds it: nothing outside exists for it.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80)
    key = models.CharField(max_length=12, unique=True)
    digest = models.CharField(max_length=64)
    scopes = models.JSONField(default=list)
    project = models.ForeignKey(
        "projects.Project", null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    rotated_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects: ClassVar[Any] = ApiTokenQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.name} ({self.key})"

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires_at is not None and self.expires_at <= clock.now()


class WsTicket(Record):
    """Lets the holder of a token open one WebSocket soon. A row is deleted by its use."""

    token = models.ForeignKey(ApiToken, on_delete=models.CASCADE, related_name="tickets")
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"ticket of {self.token_id}"
