"""The lock files as data."""

from __future__ import annotations

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FOLDER = Path(__file__).parents[2] / "locks"
# Of every Python and machine the lock files are for, what their markers ask.
MACHINES = [
    {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
        "platform_system": name,
    }
    | {
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    for python in ("3.11", "3.12", "3.13")
    for system, name, machine in (
        ("linux", "Linux", "x86_64"),
        ("linux", "Linux", "aarch64"),
        ("darwin", "Darwin", "arm64"),
    )
]


def entries(name: str) -> list[tuple[Requirement, list[str]]]:
    """Every requirement of a lock file with its hashes."""
    logical = (FOLDER / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    found = []
    for line in logical:
        asked, *hashes = line.split("--hash=")
        if asked.strip() and not asked.lstrip().startswith(("#", "-")):
            found.append((Requirement(asked.strip()), [value.strip() for value in hashes]))
    return found


def pins(name: str, machine: dict[str, str] | None = None) -> dict[str, str]:
    """Package → the version a lock file installs on a machine; on this one by default."""
    return {
        canonicalize_name(asked.name): str(next(iter(asked.specifier)).version)
        for asked, _ in entries(name)
        if asked.marker is None or asked.marker.evaluate(machine)  # type: ignore[arg-type]
    }
