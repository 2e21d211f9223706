"""Webhooks and what was sent."""

from __future__ import annotations

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from apps.core import clock
from apps.core.admin import ReadOnlyAdmin, RecordAdmin
from apps.notifications.models import Delivery, Notification, Preference, Webhook


@admin.register(Webhook)
class WebhookAdmin(RecordAdmin):
    """Who is told what; the secret stays hidden."""

    list_display = ("url", "project", "events", "enabled", "created_by", "created_at")
    list_filter = ("enabled", ("project", admin.RelatedOnlyFieldListFilter))
    list_select_related = ("project", "created_by")
    search_fields = ("url",)
    exclude = ("secret",)
    actions = ("switch_off",)

    @admin.action(description="Switch off")
    def switch_off(self, request: HttpRequest, queryset: QuerySet[Webhook]) -> None:
        """Stop sending to them."""
        count = queryset.update(enabled=False)
        self.message_user(request, f"{count} switched off.", messages.SUCCESS)


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    """Messages to the outside."""

    list_display = ("event", "webhook", "notification", "state", "attempts", "status", "due_at", "error")
    list_filter = ("state", "event")
    list_select_related = ("webhook", "notification")
    actions = ("send_again",)

    @admin.action(description="Send again now")
    def send_again(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Start over with those that were given up."""
        again = queryset.filter(state=Delivery.State.FAILED)
        count = again.update(state=Delivery.State.PENDING, attempts=0, due_at=clock.now())
        self.message_user(request, f"{count} queued again.", messages.SUCCESS)


@admin.register(Notification)
class NotificationAdmin(ReadOnlyAdmin):
    """What people were told."""

    list_display = ("title", "user", "project", "level", "read_at", "created_at")
    list_filter = ("level", "kind")
    list_select_related = ("user", "project")


@admin.register(Preference)
class PreferenceAdmin(ReadOnlyAdmin):
    """Who wants e-mail."""

    list_display = ("user", "email")
    list_filter = ("email",)
    list_select_related = ("user",)
