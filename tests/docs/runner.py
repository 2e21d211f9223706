"""Runs command lines one after the other in one process, each in its folder: torch is imported once.

python -m tests.docs.runner < [{"folder": …, "argv": [...]}, …] > [{"status": …, "out": …, "err": …}, …]
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time

from microscope.cli import main


def run(folder: str, argv: list[str]) -> dict[str, object]:
    """What a command printed, and its exit status."""
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    started = time.monotonic()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(args=argv, prog_name="microscope")
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
    return {
        "status": status,
        "out": out.getvalue(),
        "err": err.getvalue(),
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    json.dump([run(**one) for one in json.load(sys.stdin)], sys.stdout)
