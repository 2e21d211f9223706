"""Which notifications and webhooks a user may see, and which messages are due."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.db.models import Q

from apps.projects.models import Membership, Role
from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.notifications.models import Delivery, Notification, Webhook  # noqa: F401


class NotificationQuerySet(models.QuerySet["Notification"]):
    """Notifications."""

    def visible_to(self, user: Any) -> Self:
        """One's own; not even administrators read those of others."""
        if not user.is_authenticated or not user.is_active:
            return self.none()
        return self.filter(user_id=user.pk)

    def unread(self) -> Self:
        """Those nobody has looked at."""
        return self.filter(read_at=None)


class WebhookQuerySet(InProject["Webhook"]):
    """Webhooks of projects."""

    def managed_by(self, user: Any) -> Self:
        """Those of projects the user owns: an address can be a secret in itself."""
        rows = self.visible_to(user)
        if not user.is_authenticated or user.acts_as_staff:
            return rows
        owned = Membership.objects.filter(user_id=user.pk, role=Role.OWNER).values("project_id")
        return rows.filter(project_id__in=owned)


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """Messages to the outside."""

    def due(self, now: datetime) -> Self:
        """Those to be tried now; one that a dead sender had taken is free again after a while."""
        return self.filter(state="pending", due_at__lte=now).filter(
            Q(taken_until=None) | Q(taken_until__lt=now)
        )
