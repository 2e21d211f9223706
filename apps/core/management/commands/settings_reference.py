"""Print every environment variable the portal reads."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

INTRODUCTION = (
    "Every environment variable the portal reads, written by `python manage.py settings_reference`. "
    "A secret can also be given as `NAME_FILE`, the path of a file that holds it."
)


class Command(BaseCommand):
    """``manage.py settings_reference``: the table for the documentation, made from the code."""

    help = "Print a Markdown table of every environment variable, its type, default and meaning."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        """Write the table to standard output."""
        self.stdout.write(f"# Settings\n\n{INTRODUCTION}\n\n{settings.ENVIRONMENT.reference_table()}")
