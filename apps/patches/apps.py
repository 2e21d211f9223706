"""App configuration."""

from django.apps import AppConfig


class PatchesConfig(AppConfig):
    """Patches and their versions."""

    name = "apps.patches"
    verbose_name = "Patches"

    def ready(self) -> None:
        """Register the kinds of jobs whose results live here."""
        from apps.jobs.kinds import register
        from apps.patches.kinds import CERTIFY_EXPORT, EXPORT_PATCH, IMPORT_ADAPTER

        for kind in (EXPORT_PATCH, CERTIFY_EXPORT, IMPORT_ADAPTER):
            register(kind)
