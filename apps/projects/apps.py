"""App configuration."""

from django.apps import AppConfig


class ProjectsConfig(AppConfig):
    """Projects and members."""

    name = "apps.projects"
    verbose_name = "Projects"
