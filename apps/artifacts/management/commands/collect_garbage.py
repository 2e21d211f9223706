"""Remove files nothing refers to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.template.defaultfilters import filesizeformat

from apps.artifacts.blobs import collect, stored_bytes
from apps.artifacts.uploads import collect_uploads


class Command(BaseCommand):
    """Expired uploads, artifacts without an owner, folders without a row, blobs without a manifest."""

    help = "Remove files nothing refers to. Look first with --dry-run."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument(
            "--dry-run", action="store_true", help="Say what would be removed, and remove nothing."
        )
        parser.add_argument(
            "--older-than",
            type=float,
            default=24.0,
            metavar="HOURS",
            help="Leave what is younger; default 24.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Collect and tell."""
        older_than, dry_run = timedelta(hours=options["older_than"]), options["dry_run"]
        waste = collect(older_than=older_than, dry_run=dry_run)
        collect_uploads(waste.note, dry_run=dry_run)
        for category, found in sorted(waste.items()):
            size = filesizeformat(sum(size for _, size in found))
            self.stdout.write(f"{len(found)} {category}, {size}")
            if options["verbosity"] > 1 or dry_run:
                for name, size_of_one in found:
                    self.stdout.write(f"  {name}  {filesizeformat(size_of_one)}")
        done = "Nothing was removed." if dry_run or not waste else "Removed."
        self.stdout.write(f"{done} {filesizeformat(stored_bytes())} are in the store.")
