"""What is committed is what the code generates: schemas of the API and WebSockets, the browser's types, references."""

from __future__ import annotations

import json
import subprocess
from io import StringIO
from pathlib import Path

from django.core.management import call_command

ROOT = Path(__file__).parents[2]
FRONTEND = ROOT / "frontend"
STALE = "stale: run `make schema`"


def test_openapi(tmp_path: Path) -> None:
    made = tmp_path / "openapi.json"
    call_command(
        "spectacular",
        file=str(made),
        format="openapi-json",
        validate=True,
        fail_on_warn=True,
        stderr=StringIO(),
    )
    committed = (ROOT / "apps/api/openapi.json").read_text()
    assert json.loads(committed)["paths"].keys() == json.loads(made.read_text())["paths"].keys(), STALE
    assert committed == made.read_text(), STALE


def test_websocket_messages(tmp_path: Path) -> None:
    made = tmp_path / "ws_schema.json"
    call_command("ws_schema", file=made)
    assert (ROOT / "apps/live/ws_schema.json").read_text() == made.read_text(), STALE


def test_types_of_the_browser(tmp_path: Path) -> None:
    rest, live = tmp_path / "rest.d.ts", tmp_path / "live.d.ts"
    tool = FRONTEND / "node_modules/.bin/openapi-typescript"
    assert tool.exists(), "the front-end packages are not installed: run `make frontend`"
    for command in (
        [str(tool), "../apps/api/openapi.json", "-o", str(rest)],
        ["node", "scripts/ws-types.mjs", str(live)],
    ):
        subprocess.run(command, cwd=FRONTEND, check=True, capture_output=True)
    assert (FRONTEND / "src/api/schema.d.ts").read_text() == rest.read_text(), STALE
    assert (FRONTEND / "src/live/schema.d.ts").read_text() == live.read_text(), STALE


def test_command_line_reference() -> None:
    from microscope.cli import main
    from microscope.cli.reference import reference

    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == reference(main), STALE
