"""App configuration."""

from django.apps import AppConfig


class BundlesConfig(AppConfig):
    """Project bundles."""

    name = "apps.bundles"
    verbose_name = "Project bundles"

    def ready(self) -> None:
        """Register the kinds of jobs that make and read bundles."""
        from apps.bundles.kinds import EXPORT_PROJECT, IMPORT_PROJECT
        from apps.jobs.kinds import register

        for kind in (EXPORT_PROJECT, IMPORT_PROJECT):
            register(kind)
