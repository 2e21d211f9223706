"""App configuration."""

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """Models, corpora, recordings."""

    name = "apps.registry"
    verbose_name = "Models and recordings"

    def ready(self) -> None:
        """Register the kinds of jobs whose results live here."""
        from apps.jobs.kinds import register
        from apps.registry.file_kinds import EXPORT_RECORDING, IMPORT_CORPUS, IMPORT_RECORDING
        from apps.registry.kinds import INSPECT_MODEL, TRACE

        for kind in (INSPECT_MODEL, IMPORT_CORPUS, TRACE, IMPORT_RECORDING, EXPORT_RECORDING):
            register(kind)
