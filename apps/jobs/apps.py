"""App configuration."""

from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Jobs and the workers that do them."""

    name = "apps.jobs"
    verbose_name = "Jobs"

    def ready(self) -> None:
        """Let quotas measure what is used."""
        from apps.jobs import usage

        usage.register()
