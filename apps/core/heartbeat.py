"""Heartbeats of the processes no request reaches: each touches a file as long as it does its work.

Read by ``python -m worker.health``, which must be quick and therefore knows neither Django nor its settings.
"""

from __future__ import annotations

import socket
import time
from pathlib import Path

# A process whose last heartbeat is older does not work.
MAX_AGE_SECONDS = 60.0


def file_of(run_dir: Path, role: str) -> Path:
    """The file of a role on this host; the folder may be shared by several. Its name is that of earlier versions."""
    return run_dir / f"pulse-{role}-{socket.gethostname()}"


def beat(run_dir: Path, role: str) -> None:
    """Note that the process has just done a round of its work.

    Raises:
        OSError: the folder cannot be written to.
    """
    file = file_of(run_dir, role)
    try:
        file.touch()
    except FileNotFoundError:
        run_dir.mkdir(parents=True, exist_ok=True)
        file.touch()


def age(run_dir: Path, role: str) -> float | None:
    """Seconds since the last heartbeat; None when there was none."""
    try:
        return time.time() - file_of(run_dir, role).stat().st_mtime
    except FileNotFoundError:
        return None
