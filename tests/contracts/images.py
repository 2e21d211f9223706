"""What the Dockerfile and docker-compose.yml say, carried out without an engine: folders, commands, environments."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# Services whose image is built here.
OURS = [name for name, service in SERVICES.items() if "build" in service]


@dataclass
class Image:
    """One stage of the Dockerfile with what it inherits from the stages it is built from."""

    instructions: list[tuple[str, str]] = field(default_factory=list)

    def last(self, name: str) -> str:
        """The argument of the last instruction of that name."""
        return next(text for found, text in reversed(self.instructions) if found == name)

    @property
    def environment(self) -> dict[str, str]:
        """What its ENV instructions set."""
        words = (shlex.split(text) for name, text in self.instructions if name == "ENV")
        return {key: value for line in words for key, _, value in (word.partition("=") for word in line)}

    @property
    def command(self) -> list[str]:
        """What it runs if nobody says otherwise."""
        command: list[str] = json.loads(self.last("CMD"))
        return command

    def fill(self, folder: Path) -> None:
        """Copy into ``folder``, its WORKDIR, what its COPY instructions bring from the build context."""
        for text in (text for name, text in self.instructions if name == "COPY"):
            *sources, target = text.split()
            if sources[0].startswith("--from="):
                continue
            for source in sources:
                assert not ignored(source), f"{source} is not in the build context"
                place = folder / target
                place = place / Path(source).name if target.endswith("/") else place
                place.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, place)


def images() -> dict[str, Image]:
    """The stages of the Dockerfile by name."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    found: dict[str, Image] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" ")
        if not name or name.startswith("#"):
            continue
        if name == "FROM":
            base, _, stage = rest.partition(" AS ")
            image = found[stage] = Image([*found[base].instructions] if base in found else [])
        else:
            image.instructions.append((name, rest.strip()))
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file or folder of the project's root out of the build."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    return any(Path(path).match(line.removeprefix("**/")) for line in lines)


def substituted(text: str, given: dict[str, str]) -> str:
    """A value of docker-compose.yml with its ``${NAME:-default}`` and ``${NAME:?why}`` filled in.

    Raises:
        KeyError: a variable without a default is not given; the message says why it is needed.
    """

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if not given.get(name) and kind == ":?":
            raise KeyError(rest)
        return given.get(name) or rest or ""

    return re.sub(r"\$\{(\w+)(:[-?])?([^}]*)\}", fill, text)


def environment_of(name: str, given: dict[str, str]) -> dict[str, str]:
    """All that a service's process finds in its environment, besides what any process has."""
    service = SERVICES[name]
    own = {key: substituted(str(value), given) for key, value in service["environment"].items()}
    return images()[service["build"]["target"]].environment | own


def command_of(name: str) -> list[str]:
    """What a service of ours runs."""
    service = SERVICES[name]
    command: list[str] = service.get("command") or images()[service["build"]["target"]].command
    return command


def installs(stage: str, folder: Path) -> list[str]:
    """The lock files that a stage's RUN instructions install: they are run, with a Python that only takes notes."""
    tools, notes = folder / "tools", folder / "notes"
    tools.mkdir(parents=True)
    for name in ("python", "pip", "useradd", "chown", "mkdir"):
        (tools / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {notes}\n')
        (tools / name).chmod(0o755)
    place = folder / "app"
    image = images()[stage]
    image.fill(place)
    for text in (text for name, text in image.instructions if name == "RUN"):
        subprocess.run(
            ["sh", "-c", text],
            cwd=place,
            check=True,
            env={"PATH": f"{tools}:{os.defpath}", "TORCH": "gpu"},
        )
    words = notes.read_text().split()
    return [Path(word).stem for word in words if word.endswith(".txt")]
