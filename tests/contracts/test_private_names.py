"""Tests use what is public: the linter refuses private names, and what it cannot see is looked for here."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text",
    [
        "from microscope.live.resident import _require_finite\n\n_require_finite(0)\n",
        "from microscope.live import ResidentModel\n\n\ndef runner_of(x: ResidentModel):\n    return x._runner\n",
    ],
    ids=["imported", "an attribute"],
)
def test_the_linter_refuses_private_names_in_tests_and_benchmarks(text: str) -> None:
    for name, allowed in (
        ("tests/unit/new.py", False),
        ("benchmarks/new.py", False),
        ("microscope/new.py", True),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / name), "-"],
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
        )
        assert (done.returncode == 0) is allowed, done.stdout


def test_no_private_name_is_patched() -> None:
    """``setattr`` takes names as text, which no linter reads."""
    found = [place for file in sorted((ROOT / "tests").rglob("*.py")) for place in patched(file)]
    assert found == []


def patched(file: Path) -> Iterator[str]:
    """Where a file sets an attribute whose name, or the last part of whose path, is private."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and name_of(node.func) in ("setattr", "delattr", "patch", "object"):
            for argument in node.args[:2]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    name = argument.value.rpartition(".")[2]
                    if name.startswith("_") and not name.endswith("__"):
                        yield f"{file.relative_to(ROOT)}:{node.lineno} {argument.value}"


def name_of(node: ast.expr) -> str:
    """The last part of what is called."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
