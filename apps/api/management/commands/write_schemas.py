"""Regenerate the committed schemas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

OPENAPI = Path(__file__).resolve().parents[2] / "openapi.json"


class Command(BaseCommand):
    """``manage.py write_schemas``: write ``apps/api/openapi.json`` and ``apps/live/ws_schema.json``."""

    help = "Write the OpenAPI and WebSocket schemas from the code."

    def handle(self, *args: Any, **options: Any) -> None:
        """Write both files; warnings of the generator are errors."""
        call_command(
            "spectacular", file=str(OPENAPI), format="openapi-json", validate=True, fail_on_warn=True
        )
        call_command("ws_schema")
