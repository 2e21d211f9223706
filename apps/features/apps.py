"""App configuration."""

from django.apps import AppConfig


class FeaturesConfig(AppConfig):
    """Features of SAEs."""

    name = "apps.features"
    verbose_name = "Features"
