"""How a process behaves that another one started."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_NICE = 10


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies, so that no orphan keeps a GPU or writes files."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request took effect
        os.kill(os.getpid(), signal.SIGKILL)


def lower_priority() -> None:
    """Lower this process's priority: a job may take longer, a click may not."""
    if hasattr(os, "nice"):
        os.nice(_NICE)
    # Where Linux groups processes by session, niceness counts only within one: the session must yield as a whole.
    # That is asked for a session that is this process's own, never for a terminal's.
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # no such grouping here
            Path("/proc/self/autogroup").write_text(str(_NICE))


def event_stream(target: str) -> IO[str]:
    """Where events go: ``-`` is standard output, which libraries then no longer reach."""
    if target != "-":
        return Path(target).open("a", encoding="utf-8")
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream
