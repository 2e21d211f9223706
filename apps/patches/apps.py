"""App configuration."""

from django.apps import AppConfig


class PatchesConfig(AppConfig):
    """Patches and their versions."""

    name = "apps.patches"
    verbose_name = "Patches"
