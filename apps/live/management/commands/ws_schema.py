"""Write the JSON Schema of the WebSocket messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from apps.live.messages import schema

TARGET = Path(__file__).resolve().parents[2] / "ws_schema.json"


def schema_text() -> str:
    """The file's content."""
    return json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


class Command(BaseCommand):
    """``manage.py ws_schema``: regenerate ``apps/live/ws_schema.json``."""

    help = "Write the JSON Schema of the WebSocket messages from the code."

    def add_arguments(self, parser: CommandParser) -> None:
        """Options."""
        parser.add_argument("--file", type=Path, default=TARGET)

    def handle(self, *args: Any, **options: Any) -> None:
        """Write the file."""
        options["file"].write_text(schema_text(), encoding="utf-8")
