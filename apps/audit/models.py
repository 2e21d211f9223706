"""The audit log."""

from __future__ import annotations

from typing import Any, NoReturn

from django.conf import settings
from django.db import models

from apps.core.ids import uuid7


class AuditEvents(models.QuerySet["AuditEvent"]):
    """Events can be added and read."""

    def update(self, **kwargs: Any) -> NoReturn:
        """Refused: the log is append-only."""
        raise TypeError("audit events cannot be changed")

    def delete(self) -> NoReturn:
        """Refused: the log is append-only."""
        raise TypeError("audit events cannot be deleted")


class AuditEvent(models.Model):
    """One change somebody made. Holds names beside ids, so it reads well after its objects are gone."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(auto_now_add=True, db_index=True)
    # No constraint in the database: a person may be removed, the record of what they did stays as it was.
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
    )
    actor_name = models.CharField(max_length=150, blank=True)
    token_id = models.UUIDField(null=True, blank=True)
    token_name = models.CharField(max_length=100, blank=True)
    action = models.CharField(max_length=60, db_index=True)
    project_id = models.UUIDField(null=True, db_index=True)
    target_type = models.CharField(max_length=40)
    target_id = models.CharField(max_length=64)
    target_name = models.CharField(max_length=200, blank=True)
    data = models.JSONField(default=dict)

    objects = AuditEvents.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.actor_name} {self.action} {self.target_name}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Insert; changing an event is refused."""
        if not self._state.adding:
            raise TypeError("audit events cannot be changed")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the log is append-only."""
        raise TypeError("audit events cannot be deleted")
