"""The page as a package: every block of code that begins with the name of its file is that file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "extending.md"
_FILE = re.compile(r"^```\w+\n# (\S+\.(?:py|toml))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Path in the package → what the page says is in it."""
    found = dict(_FILE.findall(PAGE.read_text(encoding="utf-8")))
    package = {"lab_extras/__init__.py": ""} | found
    assert len(found) == PAGE.read_text(encoding="utf-8").count("```") // 2, (
        "a block without the name of its file"
    )
    return package


def install(folder: Path) -> Path:
    """Write the package below the folder and let pip install it, without a network; returns what to put on the path."""
    source, target = folder / "source", folder / "installed"
    for name, text in files().items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target
