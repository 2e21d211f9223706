"""Manners of a process that another one started."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies, so that no orphan keeps a GPU or writes files."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request took effect
        os.kill(os.getpid(), signal.SIGKILL)


def yield_to_people() -> None:
    """Lower this process's priority: a job may take longer, a click may not."""
    if hasattr(os, "nice"):
        os.nice(10)


def event_stream(target: str) -> IO[str]:
    """Where events go: ``-`` is standard output, which libraries then no longer reach."""
    if target != "-":
        return Path(target).open("a", encoding="utf-8")
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream
