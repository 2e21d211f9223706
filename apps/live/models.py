"""Processes that hold a model in memory."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.core.records import Record
from apps.projects.models import Project
from apps.registry.models import LanguageModel


class ResidentWorker(Record):
    """The process that holds a model, as its agent last saw it. One row per model, reused by restarts."""

    class State(models.TextChoices):
        """What can be asked of it."""

        STARTING = "starting"
        READY = "ready"
        FAILED = "failed"
        STOPPED = "stopped"
        LOST = "lost"

    model = models.OneToOneField(LanguageModel, on_delete=models.CASCADE, related_name="resident")
    state = models.CharField(max_length=8, choices=State.choices)
    address = models.CharField(max_length=200, blank=True)
    host = models.CharField(max_length=120, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    error_code = models.CharField(max_length=60, blank=True)
    error_message = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)
    memory_bytes = models.BigIntegerField(null=True, blank=True)
    info = models.JSONField(default=dict)
    started_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                condition=~Q(state="ready") | ~Q(address=""), name="resident_ready_has_address"
            ),
        )

    def __str__(self) -> str:
        return f"{self.model} ({self.state})"

    @property
    def running(self) -> dict[str, Any] | None:
        """How the model is run while it is in memory, as JSON; null when it is not, or nothing says."""
        found: dict[str, Any] | None = self.info.get("running")
        return found if self.state == self.State.READY else None


class LiveSeat(Record):
    """An open live session, counted against quotas as long as its web process renews it."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    page = models.UUIDField(null=True, blank=True)
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"seat of {self.user_id}"
