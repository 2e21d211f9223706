"""A test that is skipped without leave fails the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.skips import ALLOWED

ROOT = Path(__file__).parents[2]


def outcome(folder: Path, text: str) -> tuple[int, str]:
    """The exit status and the words of a run of one file."""
    (folder / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.skips", "test_it.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    "text",
    [
        "import pytest\ndef test_a(): pytest.importorskip('not_there')",
        "import pytest\nthing = pytest.importorskip('not_there')\ndef test_a(): pass",
        "import pytest\n@pytest.mark.skip(reason='later')\ndef test_a(): pass",
        "import pytest\n@pytest.mark.skipif(True, reason='needs SQLite')\ndef test_a(): pass",
        "import pytest\n@pytest.fixture\ndef f(): pytest.skip('no')\ndef test_a(f): pass",
    ],
    ids=["in a test", "in a module", "marked", "allowed elsewhere", "in a fixture"],
)
def test_a_skip_without_leave_is_a_failure(tmp_path: Path, text: str) -> None:
    status, said = outcome(tmp_path, text)
    assert status != 0
    assert "tests/skips.py does not allow" in said


def test_what_cannot_be_tested_here_may_be_skipped(tmp_path: Path) -> None:
    reason = next(reason for reason, here in ALLOWED.items() if here)
    text = f"import pytest\n@pytest.mark.skipif(True, reason={reason!r})\ndef test_a(): pass\n"
    status, said = outcome(tmp_path, text)
    assert (status, "1 skipped" in said) == (0, True), said
