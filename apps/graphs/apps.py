"""App configuration."""

from django.apps import AppConfig


class GraphsConfig(AppConfig):
    """Provenance graphs."""

    name = "apps.graphs"
    verbose_name = "Provenance graphs"
