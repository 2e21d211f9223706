"""Make an API token for somebody on this machine."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts.models import ApiToken
from apps.accounts.scopes import Scope
from apps.accounts.services import find_user
from apps.accounts.tokens import create_token, revoke_token


class Command(BaseCommand):
    """``manage.py issue_token --username alice --name script --minutes 60 --scopes write jobs``."""

    help = "Make an API token, print it, and revoke the earlier ones of that name."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--username", required=True)
        parser.add_argument("--name", required=True)
        parser.add_argument("--minutes", type=int, required=True, help="how long it lets somebody in")
        parser.add_argument(
            "--scopes", nargs="+", choices=[scope.value for scope in Scope], default=[Scope.READ.value]
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Make it and print its text, which nobody can see again."""
        user = find_user(options["username"])
        if user is None:
            raise CommandError(f"There is no user {options['username']}.")
        for earlier in ApiToken.objects.filter(user=user, name=options["name"], revoked_at=None):
            revoke_token(actor=user, token=earlier)
        _, secret = create_token(
            actor=user,
            name=options["name"],
            scopes=options["scopes"],
            expires_at=timezone.now() + timedelta(minutes=options["minutes"]),
        )
        self.stdout.write(secret)
