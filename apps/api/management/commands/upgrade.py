"""``manage.py upgrade``: what to do after new code was installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandParser
from django.utils import timezone

from apps.api.operations import pending_migrations


class Command(BaseCommand):
    """Backs up, brings the database up to date, and looks whether all is well."""

    help = "Back up, migrate, and run the doctor. Stop the servers before."

    def add_arguments(self, parser: CommandParser) -> None:
        """Where the backup goes, or that there is none."""
        parser.add_argument(
            "--backup", type=Path, help="Folder of the backup; default below the data folder."
        )
        parser.add_argument("--no-backup", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it."""
        pending = pending_migrations()
        if not pending:
            self.stdout.write("The database is of this version already.")
        else:
            if not options["no_backup"]:
                name = f"{timezone.now():%Y%m%d-%H%M%S}"
                folder = options["backup"] or Path(settings.WORKBENCH_DATA_DIR) / "backups" / name
                call_command("backup", folder, stdout=self.stdout)
            call_command("migrate", interactive=False, stdout=self.stdout, verbosity=0)
            self.stdout.write(f"{len(pending)} migrations were applied.")
        call_command("doctor", stopped=True, stdout=self.stdout)
