"""App configuration."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Jobs and the workers that do them."""

    name = "apps.jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        """Find every app's kinds of jobs, and let quotas measure what is used."""
        from apps.jobs import kinds, usage

        kinds.discover()
        usage.register()
