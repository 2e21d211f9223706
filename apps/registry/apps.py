"""App configuration."""

from django.apps import AppConfig


class RegistryConfig(AppConfig):
    """Models, corpora, recordings."""

    name = "apps.registry"
    verbose_name = "Models and recordings"
