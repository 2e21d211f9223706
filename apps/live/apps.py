"""App configuration."""

from django.apps import AppConfig


class LiveConfig(AppConfig):
    """Live sessions."""

    name = "apps.live"
    verbose_name = "Live models"

    def ready(self) -> None:
        """Let quotas measure what is used."""
        from apps.live import seats

        seats.register()
