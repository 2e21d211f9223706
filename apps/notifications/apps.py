"""App configuration."""

from django.apps import AppConfig


class NotificationsConfig(AppConfig):
    """Notifications, e-mails, webhooks."""

    name = "apps.notifications"
    verbose_name = "Notifications"
