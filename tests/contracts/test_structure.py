"""Who may import whom, and what a newcomer and the continuous integration rely on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.chart import drawn

ROOT = Path(__file__).parents[2]


def lint_imports(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [str(tool), "--no-cache", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_imports_keep_to_the_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_contracts_would_notice(tmp_path: Path) -> None:
    """The same contracts on a house where a view imports torch and the science imports Django."""
    for path, text in {
        "apps/core/views.py": "import torch\n",
        "apps/saes/views.py": "import microscope.sae\n",
        "microscope/sae.py": "from django.db import models\n",
        "microscope/params.py": "",
        "workbench/settings.py": "import microscope.params\n",
        "worker/protocol.py": "",
        "worker/resident.py": "",
        "worker/tasks.py": "",
    }.items():
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        for folder in (file.parent, *file.parent.parents):
            if folder == tmp_path:
                break
            (folder / "__init__.py").touch()
        file.write_text(text)
    for layer in (ROOT / "apps").glob("*/__init__.py"):
        folder = tmp_path / "apps" / layer.parent.name
        folder.mkdir(exist_ok=True)
        (folder / "__init__.py").touch()
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "apps.core.views -> torch" in done.stdout
    assert "apps.saes.views -> microscope.sae" in done.stdout
    assert "microscope.sae -> django" in done.stdout
    assert "workbench.settings -> microscope.params" not in done.stdout  # the one door stays open


def test_ci_runs_all_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")
    planned = make("test")
    for words in (
        "lint-imports",
        "ruff check",
        "mypy apps workbench worker microscope",
        'pytest -m "servers or e2e or model"',
        '-m "not servers and not e2e and not model"',
        "python -m tests.postgres",
        "ensure_chromium.sh",
        "npm test",
    ):
        assert words in planned, words


def make(target: str) -> str:
    """What make would do, without doing it."""
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", "--no-print-directory", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", ["demo", "test", "lint", "dev", "doctor", "schema", "bench"])
def test_targets_of_make_exist(target: str) -> None:
    assert make(target)
    listed = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{target}:.*## \w", listed, re.MULTILINE), f"{target} is not in `make help`"


def test_every_mark_of_the_tests_is_run_by_make() -> None:
    """A new mark would otherwise be selected by neither of the two runs, or by both."""
    planned = make("test")
    runs = re.findall(r'pytest .*-m "([^"]+)"', planned)
    first, second = (run for run in runs)
    assert set(re.findall(r"not (\w+)", first)) == set(re.findall(r"\b(?!or\b)(\w+)", second))


def test_the_chart_of_speed_shows_the_tables_as_they_are() -> None:
    page, chart = (
        (ROOT / "docs" / f"benchmarks.{kind}").read_text(encoding="utf-8") for kind in ("md", "svg")
    )
    assert drawn(page) == chart, (
        "`python -m benchmarks.chart` draws docs/benchmarks.svg from docs/benchmarks.md"
    )
