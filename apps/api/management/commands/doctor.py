"""``manage.py doctor``: what is wrong here, and what to do about it."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from django.core.management.base import BaseCommand, CommandParser

from apps.api.doctor import examine

SIGNS = {"ok": "✓", "warning": "!", "error": "✕"}


class Command(BaseCommand):
    """Looks at database, migrations, broker, workers, models, disk and artifacts."""

    help = "Say what is missing or wrong in this installation; exit status 1 when something does not work."
    requires_system_checks: list[str] = []  # noqa: RUF012 (Django's own name and type)

    def add_arguments(self, parser: CommandParser) -> None:
        """``--json`` for machines."""
        parser.add_argument("--json", action="store_true", help="Print the findings as JSON.")
        parser.add_argument("--stopped", action="store_true", help="The servers are meant to be down.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the findings."""
        findings = list(examine(stopped=options["stopped"]))
        if options["json"]:
            self.stdout.write(msgspec.json.encode([finding._asdict() for finding in findings]).decode())
        else:
            for finding in findings:
                remedy = f"\n    → {finding.remedy}" if finding.remedy else ""
                self.stdout.write(f"{SIGNS[finding.level]} {finding.name}: {finding.text}{remedy}")
        if any(finding.level == "error" for finding in findings):
            sys.exit(1)
