"""App configuration."""

from django.apps import AppConfig


class ApiConfig(AppConfig):
    """The API."""

    name = "apps.api"
    verbose_name = "API"
