"""Who may import whom, and that the chart of speed shows what was measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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
    """The same contracts on a house whose imports break every one of them."""
    for path, text in {
        "apps/core/views.py": "import torch\n",
        "apps/saes/views.py": "import microscope.sae\n",
        "apps/jobs/views.py": "import workbench.settings\nimport worker.tasks\n",
        "microscope/sae.py": "from django.db import models\n",
        "microscope/params.py": "import microscope.protocol\n",
        "microscope/graphs.py": "",
        "microscope/protocol.py": "",
        "microscope/errors.py": "",
        "workbench/settings.py": "import microscope.params\n",
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
    assert "apps.jobs.views -> workbench.settings" in done.stdout
    assert "apps.jobs.views -> worker.tasks" in done.stdout
    assert "microscope.params -> microscope.protocol" in done.stdout
    assert "workbench.settings -> microscope.params" not in done.stdout  # the one door stays open


def test_the_chart_of_speed_shows_the_tables_as_they_are() -> None:
    page, chart = (
        (ROOT / "docs" / f"benchmarks.{kind}").read_text(encoding="utf-8") for kind in ("md", "svg")
    )
    assert drawn(page) == chart, (
        "`python -m benchmarks.chart` draws docs/benchmarks.svg from docs/benchmarks.md"
    )
