"""What people are told, and what is sent to the outside until it arrives."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.core.records import Record
from apps.notifications.querysets import DeliveryQuerySet, NotificationQuerySet, WebhookQuerySet
from apps.projects.models import Project


class Notification(Record):
    """One thing one person is told. ``subject_type`` and ``subject_id`` name what it is about."""

    class Level(models.TextChoices):
        """How it went."""

        SUCCESS = "success"
        INFO = "info"
        WARNING = "warning"
        ERROR = "error"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="notifications")
    project = models.ForeignKey(Project, null=True, blank=True, on_delete=models.CASCADE, related_name="+")
    kind = models.CharField(max_length=40)
    level = models.CharField(max_length=7, choices=Level.choices, default=Level.INFO)
    title = models.CharField(max_length=250)
    message = models.TextField(blank=True)
    subject_type = models.CharField(max_length=40, blank=True)
    subject_id = models.UUIDField(null=True, blank=True)
    read_at = models.DateTimeField(null=True, blank=True)

    objects = NotificationQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        indexes = (
            models.Index(fields=("user", "-id"), name="notification_user"),
            models.Index(fields=("user",), name="notification_unread", condition=Q(read_at=None)),
        )

    def __str__(self) -> str:
        return self.title


class Preference(models.Model):
    """Which notifications somebody also wants by e-mail. Without a row: none."""

    class Email(models.TextChoices):
        """Which ones."""

        NONE = "none"
        PROBLEMS = "problems"
        ALL = "all"

    user = models.OneToOneField(
        settings.AUTH_USER_MODEL, primary_key=True, on_delete=models.CASCADE, related_name="preference"
    )
    email = models.CharField(max_length=8, choices=Email.choices, default=Email.NONE)

    def __str__(self) -> str:
        return f"{self.user}: {self.email}"


class Webhook(Record):
    """An address that is told of events of a project. ``secret`` signs what is sent and is shown once."""

    EDITED = ("url", "events", "enabled")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="webhooks")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    url = models.URLField(max_length=500)
    events = models.JSONField(default=list)
    secret = models.CharField(max_length=80)
    enabled = models.BooleanField(default=True)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return self.url


class Delivery(Record):
    """One message to the outside, kept until it has arrived or was given up.

    Either ``webhook`` or ``notification`` (by e-mail) is set.
    """

    class State(models.TextChoices):
        """Where it stands."""

        PENDING = "pending"
        DELIVERED = "delivered"
        FAILED = "failed"

    webhook = models.ForeignKey(
        Webhook, null=True, blank=True, on_delete=models.CASCADE, related_name="deliveries"
    )
    notification = models.OneToOneField(
        Notification, null=True, blank=True, on_delete=models.CASCADE, related_name="delivery"
    )
    event = models.CharField(max_length=40)
    payload = models.JSONField(default=dict)
    state = models.CharField(max_length=9, choices=State.choices, default=State.PENDING)
    attempts = models.PositiveSmallIntegerField(default=0)
    due_at = models.DateTimeField(default=timezone.now)
    taken_until = models.DateTimeField(null=True, blank=True)
    delivered_at = models.DateTimeField(null=True, blank=True)
    status = models.PositiveSmallIntegerField(null=True, blank=True, help_text="HTTP status of the answer.")
    error = models.TextField(blank=True)

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "deliveries"
        constraints = (
            models.CheckConstraint(
                condition=Q(webhook__isnull=False, notification__isnull=True)
                | Q(webhook__isnull=True, notification__isnull=False),
                name="delivery_has_one_target",
            ),
        )
        indexes = (models.Index(fields=("due_at",), name="delivery_due", condition=Q(state="pending")),)

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook or self.notification}"
