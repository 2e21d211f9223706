"""App configuration."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    """The audit log."""

    name = "apps.audit"
    verbose_name = "Audit"
