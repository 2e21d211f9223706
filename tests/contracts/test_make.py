"""What make and the continuous integration do: the Makefile itself, with tools that only note how they are called."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Asked for by the README and CONTRIBUTING.md.
PROMISED = {"demo", "test", "test-fast", "lint", "dev", "doctor", "schema", "bench", "pictures"}
TOOL = """#!/bin/sh
call=$(basename "$0")
for word in "$@"; do call="$call|$word"; done
echo "$call" >> "$NOTES"
[ "$call" != "$BROKEN" ]
"""


@dataclass
class House:
    """A folder in which everything is installed and nothing is real."""

    folder: Path

    def run(self, *command: str, broken: str = "") -> tuple[int, list[str]]:
        """The exit status and every call of a tool, its words with bars between; the call ``broken`` fails."""
        notes = self.folder / "notes"
        notes.write_text("")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
        path = f"{self.folder / 'tools'}:{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=kept | {"PATH": path, "NOTES": str(notes), "BROKEN": broken},
            capture_output=True,
            text=True,
        )
        self.said = done.stdout
        return done.returncode, notes.read_text().splitlines()


@pytest.fixture
def house(tmp_path: Path) -> House:
    for name in ("Makefile", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)

    def place(name: str, text: str = "", seconds: int = 1000) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        os.utime(file, (seconds, seconds))

    for name in (
        "pyproject.toml",
        "scripts/install.sh",
        "frontend/package.json",
        "frontend/package-lock.json",
    ):
        place(name)
    for lock in (ROOT / "locks").glob("*.txt"):
        place(f"locks/{lock.name}")
    for name in ("python", "pytest", "ruff", "mypy", "lint-imports", "microscope"):
        place(f".venv/bin/{name}", TOOL)
    for name in ("ensure_chromium.sh", "ensure_nginx.sh", "lock.sh"):
        place(f"scripts/{name}", TOOL)
    for name in ("npm", "python3"):
        place(f"tools/{name}", TOOL)
    # made of what is above, and up to date
    for name in (
        *(".venv/.installed", ".venv-peers/.installed", ".venv-nnsight/.installed"),
        "frontend/node_modules/.installed",
    ):
        place(name, seconds=2000)
    place("frontend/dist/index.html", seconds=3000)
    (tmp_path / "docs").mkdir()
    return House(tmp_path)


def test_the_continuous_integration_runs_every_check_and_ends_with_what_fails(house: House) -> None:
    status, calls = house.run("./.ci/run")
    assert status == 0
    assert {call.split("|")[0] for call in calls} == {
        *("lint-imports", "ruff", "mypy", "pytest", "python", "npm"),
        *("ensure_chromium.sh", "ensure_nginx.sh"),
    }
    for call in calls:
        assert house.run("./.ci/run", broken=call)[0] != 0, f"{call} fails and nobody is told"


def test_every_test_is_in_exactly_one_of_the_runs(house: House, pytestconfig: pytest.Config) -> None:
    """Whichever marks it has: a new one would otherwise be selected by neither of the runs, or by both."""
    _, calls = house.run("make", "test")
    chosen = [expression_of(call) for call in calls if call.startswith("pytest|")]
    marks = [line.partition(":")[0] for line in pytestconfig.getini("markers")]
    marks = [mark.partition("(")[0] for mark in marks]
    used = [mark for mark in marks if any(mark in expression.split() for expression in chosen)]
    assert used
    for values in itertools.product((False, True), repeat=len(used)):
        has = dict(zip(used, values, strict=True))
        assert sum(bool(eval(expression, {}, has)) for expression in chosen) == 1, has
    [fast] = house.run("make", "test-fast")[1]
    assert expression_of(fast) in chosen, "it runs one of the two"


def expression_of(call: str) -> str:
    """Which marks a pytest run selects."""
    words = call.split("|")
    return words[words.index("-m") + 1]


def test_what_help_lists_can_be_made(house: House) -> None:
    status, _ = house.run("make", "help")
    assert status == 0
    listed = [line.split()[0] for line in house.said.splitlines()]
    assert set(listed) >= PROMISED
    for target in sorted(listed, key="clean".__eq__):
        status, calls = house.run("make", target)
        assert status == 0, (target, house.said)
        assert calls or target in ("help", "peers", "frontend", "clean"), target


def test_what_is_out_of_date_is_made_again(house: House) -> None:
    """A lock file that changed is installed, in its environment and no other, before the tests run."""
    for lock, environment in (
        ("workbench", ".venv"),
        ("peers", ".venv-peers"),
        ("nnsight", ".venv-nnsight"),
    ):
        (house.folder / environment / "bin").mkdir(exist_ok=True)
        python = house.folder / environment / "bin" / "python"
        shutil.copy(house.folder / "tools" / "npm", python)
        (house.folder / "scripts" / "install.sh").write_text('echo "install|$*" >> "$NOTES"\n')
        os.utime(house.folder / "scripts" / "install.sh", (1000, 1000))
        os.utime(house.folder / "locks" / f"{lock}.txt", (4000, 4000))
        _, calls = house.run("make", "bench")
        installs = [call for call in calls if call.startswith("install|")]
        assert [call.split("|")[1].split()[0] for call in installs] == [f"{environment}/bin/python"], lock
        assert lock in installs[0].split()
        assert house.run("make", "bench")[1] == calls[-1:], "once"
