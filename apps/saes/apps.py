"""App configuration."""

from django.apps import AppConfig


class SaesConfig(AppConfig):
    """SAEs and evaluations."""

    name = "apps.saes"
    verbose_name = "SAEs"

    def ready(self) -> None:
        """Register the kinds of jobs whose results live here."""
        from apps.jobs.kinds import register
        from apps.saes.kinds import EVALUATE, EXPORT, IMPORT, TRAIN

        register(TRAIN)
        register(EVALUATE)
        register(IMPORT)
        register(EXPORT)
