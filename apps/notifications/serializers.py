"""Notifications and webhooks as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.core.views import VisibleField
from apps.notifications.models import Delivery, Notification, Preference, Webhook
from apps.notifications.services import EVENTS
from apps.projects.models import Project


class NotificationSerializer(serializers.ModelSerializer[Notification]):
    """One thing the user is told."""

    project = serializers.UUIDField(source="project_id", read_only=True, allow_null=True)

    class Meta:
        model = Notification
        fields = (
            "id",
            "project",
            "kind",
            "level",
            "title",
            "message",
            "subject_type",
            "subject_id",
            "read_at",
            "created_at",
        )
        read_only_fields = fields


class UnreadSerializer(serializers.Serializer[Any]):
    """How many the user has not looked at."""

    unread = serializers.IntegerField()


class MarkReadSerializer(serializers.Serializer[Any]):
    """Which to mark as read; all without ``ids``."""

    ids = serializers.ListField(child=serializers.UUIDField(), required=False, max_length=500)


class PreferenceSerializer(serializers.ModelSerializer[Preference]):
    """Which notifications are also sent by e-mail."""

    class Meta:
        model = Preference
        fields = ("email",)


class WebhookSerializer(serializers.ModelSerializer[Webhook]):
    """An address that is told of events of a project."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    events = serializers.ListField(child=serializers.ChoiceField(choices=EVENTS), read_only=True)

    class Meta:
        model = Webhook
        fields = ("id", "project", "url", "events", "enabled", "created_at")
        read_only_fields = fields


class NewWebhookSerializer(serializers.Serializer[Any]):
    """A new webhook with its secret, which is shown this once."""

    webhook = WebhookSerializer()
    secret = serializers.CharField(help_text="Key of the HMAC in X-Workbench-Signature.")


class WebhookCreateSerializer(serializers.Serializer[Any]):
    """A webhook to be made."""

    project = VisibleField(Project)
    url = serializers.URLField(max_length=500)
    events = serializers.ListField(child=serializers.ChoiceField(choices=EVENTS), min_length=1, max_length=20)


class WebhookUpdateSerializer(serializers.Serializer[Any]):
    """Changes of a webhook."""

    url = serializers.URLField(max_length=500, required=False)
    events = serializers.ListField(
        child=serializers.ChoiceField(choices=EVENTS), min_length=1, max_length=20, required=False
    )
    enabled = serializers.BooleanField(required=False)


class DeliverySerializer(serializers.ModelSerializer[Delivery]):
    """One message and what became of it."""

    class Meta:
        model = Delivery
        fields = (
            "id",
            "event",
            "payload",
            "state",
            "attempts",
            "due_at",
            "delivered_at",
            "status",
            "error",
            "created_at",
        )
        read_only_fields = fields
