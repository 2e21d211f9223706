"""App configuration."""

from django.apps import AppConfig


class ArtifactsConfig(AppConfig):
    """Stored files."""

    name = "apps.artifacts"
    verbose_name = "Artifacts"

    def ready(self) -> None:
        """Let quotas measure what is used."""
        from apps.artifacts import usage

        usage.register()
