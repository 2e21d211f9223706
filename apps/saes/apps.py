"""App configuration."""

from django.apps import AppConfig


class SaesConfig(AppConfig):
    """SAEs and evaluations."""

    name = "apps.saes"
    verbose_name = "SAEs"
