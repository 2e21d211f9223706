"""``manage.py backup FOLDER``: everything in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.api.backups import backup
from apps.core.errors import MicroscopeError


class Command(BaseCommand):
    """Writes database and files; the servers may go on running."""

    help = "Write the database and all files into a new folder, from which `restore` makes the installation anew."

    def add_arguments(self, parser: CommandParser) -> None:
        """The folder."""
        parser.add_argument("folder", type=Path)

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it."""
        try:
            manifest = backup(options["folder"])
        except MicroscopeError as error:
            raise CommandError(f"{error.message} {error.hint}") from error
        self.stdout.write(f"{sum(manifest.rows.values())} rows and their files are in {options['folder']}.")
