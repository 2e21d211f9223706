"""App configuration."""

from django.apps import AppConfig


class CoreConfig(AppConfig):
    """Shared foundations."""

    name = "apps.core"

    def ready(self) -> None:
        """Register the schema extensions."""
        from apps.core import schema  # noqa: F401
