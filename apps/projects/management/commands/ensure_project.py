"""Make a project of somebody's unless they can see one of that name."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.accounts.services import find_user
from apps.projects.models import Project
from apps.projects.services import create_project


class Command(BaseCommand):
    """``manage.py ensure_project --owner alice --name Laboratory``."""

    help = "Make a project of somebody's unless they can see one of that name; prints its id."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--owner", required=True, help="user name or e-mail address")
        parser.add_argument("--name", required=True)

    def handle(self, *args: Any, **options: Any) -> None:
        """Find or make it."""
        owner = find_user(options["owner"])
        if owner is None:
            raise CommandError(f"There is no user {options['owner']}.")
        found = Project.objects.visible_to(owner).filter(name=options["name"]).order_by("created_at").first()
        project = found or create_project(actor=owner, name=options["name"])
        self.stdout.write(str(project.pk))
