"""``manage.py restore FOLDER``: an installation from its backup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.api.backups import restore
from apps.core.errors import MicroscopeError


class Command(BaseCommand):
    """Reads what `backup` wrote, on any database; stop the servers before."""

    help = "Bring a backup into this installation, on SQLite or PostgreSQL alike. Stop the servers before."

    def add_arguments(self, parser: CommandParser) -> None:
        """The folder, and whether to lose what is here."""
        parser.add_argument("folder", type=Path)
        parser.add_argument("--replace", action="store_true", help="Lose what this installation holds.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Read it."""
        try:
            manifest = restore(options["folder"], replace=options["replace"])
        except MicroscopeError as error:
            raise CommandError(f"{error.message} {error.hint}") from error
        self.stdout.write(
            f"{sum(manifest.rows.values())} rows of {manifest.created_at:%Y-%m-%d %H:%M} UTC are back."
        )
