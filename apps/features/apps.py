"""App configuration."""

from django.apps import AppConfig


class FeaturesConfig(AppConfig):
    """Features of SAEs."""

    name = "apps.features"
    verbose_name = "Features"

    def ready(self) -> None:
        """Register the kind of job whose results live here."""
        from apps.features.kinds import ANALYSE
        from apps.jobs.kinds import register

        register(ANALYSE)
