"""``microscope remote …`` offers what the REST API takes, no more and no less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from apps.jobs.kinds import get_kind
from microscope.cli.remote_files import remote

API = json.loads((Path(__file__).parents[2] / "apps/api/openapi.json").read_text(encoding="utf-8"))

COMMANDS = {
    "add-model": ("/api/v1/models", None),
    "trace": ("/api/v1/recordings", "trace"),
    "train": ("/api/v1/saes", "train"),
    "eval": ("/api/v1/saes/{id}/evaluate", "evaluate"),
    "analyse": ("/api/v1/saes/{id}/analyse", "analyse"),
    "import-corpus": ("/api/v1/corpora/import", "import_corpus"),
    "import-recording": ("/api/v1/recordings/import", None),
    "import-sae": ("/api/v1/saes/import", "import_sae"),
    "import-adapter": ("/api/v1/adapters", None),
    "export-recording": ("/api/v1/recordings/{id}/export", None),
    "export-sae": ("/api/v1/saes/{id}/export", "export_sae"),
    "export-patch": ("/api/v1/patches/{id}/export", "export_patch"),
    "export-project": ("/api/v1/projects/{id}/export", "export_project"),
    "import-project": ("/api/v1/projects/import", None),
}
# What a field of the API is called where a person writes it: a mixture is corpora and their weights.
SPELT = {"mixture": "weights", "uploads": "path"}
# What the one argument of a command says at once: a path or an id of the Hub.
SAID = {"source", "reference"}
# What is about the command itself.
OWN = {"sae_dir", "project", "detach", "as_json", "out", "load_in_8bit", "load_in_4bit"}


def body(path: str) -> dict[str, Any]:
    operation = API["paths"][path]["post"]
    if "requestBody" not in operation:
        return {}
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    found: dict[str, Any] = API["components"]["schemas"][reference.rsplit("/", 1)[1]]["properties"]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_what_its_route_takes(name: str) -> None:
    path, kind = COMMANDS[name]
    # An argument is the thing the route is about, or the path of what is sent.
    offered = {
        str(option.name)
        for option in remote.commands[name].params
        if not isinstance(option, click.Argument) or option.name == "path"
    } - OWN
    fields = {SPELT.get(field, field) for field in body(path)} - {"params", "project"} - SAID
    chosen = {spec.name for spec in get_kind(kind).fields} if kind else set()
    assert offered == fields | chosen


def test_every_command_that_starts_a_job_is_compared() -> None:
    starting = {
        name
        for name, command in remote.commands.items()
        if {"name", "out"} & {o.name for o in command.params}
    }
    assert starting - {"download"} <= set(COMMANDS)
