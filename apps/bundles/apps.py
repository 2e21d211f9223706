"""App configuration."""

from django.apps import AppConfig


class BundlesConfig(AppConfig):
    """Project bundles."""

    name = "apps.bundles"
    verbose_name = "Project bundles"
