"""Make a user unless there is one of that name."""

from __future__ import annotations

import getpass
import os
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.accounts.services import ensure_user


class Command(BaseCommand):
    """``manage.py ensure_user --username alice --email alice@example.org``."""

    help = "Make a user unless there is one of that name. The password is read from WORKBENCH_PASSWORD or asked for."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--username", required=True)
        parser.add_argument("--email", required=True)
        parser.add_argument("--password", help="visible in the process list; prefer WORKBENCH_PASSWORD")
        parser.add_argument("--staff", action="store_true", help="administrator of the whole site")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make the user and say what happened."""
        password = options["password"] or os.environ.get("WORKBENCH_PASSWORD") or getpass.getpass()
        user, created = ensure_user(
            username=options["username"], email=options["email"], password=password, staff=options["staff"]
        )
        self.stdout.write(f"{user.username}: {'created' if created else 'exists'}")
