"""How much memory, time and disk a process may take, and what it does take.

Linux enforces what it can by itself: the size of one file, processor time and, where no model is loaded, private
memory. Libraries for accelerators reserve far more address space than they use, so the memory of a process that
loads models is measured by its supervisor instead, and so is elapsed time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path

import psutil

# Signals by which the system ends a process that took too much.
BY_SIGNAL: dict[int, str] = {-signal.SIGXCPU: "time", -signal.SIGXFSZ: "file"}
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a process and all it starts may take.

    Args:
        memory: bytes, all its processes together.
        seconds: from its start to its end.
        file: bytes of the largest file it may write.
        confined: whether the system is to refuse memory beyond that, per process; not where models are loaded.
    """

    memory: int
    seconds: float
    file: int
    confined: bool = False


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container around this process, has."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            total = min(total, int(path.read_text()))
    return total


def impose(pid: int, limits: Limits) -> None:
    """Ask the system to hold a process, and all it will start, to its limits; does nothing elsewhere than on Linux."""
    if sys.platform != "linux":
        return
    import resource

    # Every core busy from start to end is the most a job within its time can use.
    processor = int(limits.seconds * (os.cpu_count() or 1)) + 60
    wanted = {resource.RLIMIT_CPU: processor, resource.RLIMIT_CORE: 0}
    if limits.file:
        wanted[resource.RLIMIT_FSIZE] = limits.file
    if limits.confined:
        wanted[resource.RLIMIT_DATA] = limits.memory
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        for which, most in wanted.items():
            _, hard = resource.prlimit(pid, which)
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            # At the hard limit of processor time the kernel kills without a word; before it there is a signal.
            above = most + 30 if which == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else most
            resource.prlimit(pid, which, (most, above))


class Usage:
    """What a running process takes, looked at from time to time.

    ``memory`` is the bytes it took when that was too much.

    Args:
        pid: of the process; what it starts counts as its own.
        limits: what they may take.
    """

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid, self._limits, self._started = pid, limits, time.monotonic()
        self.memory = 0

    def exceeded(self) -> str:
        """What has been taken too much of: ``time``, ``memory``, or nothing."""
        if time.monotonic() - self._started > self._limits.seconds:
            return "time"
        if memory_of(self._pid) > self._limits.memory:
            self.memory = exact_memory_of(self._pid)
            if self.memory > self._limits.memory:
                return "memory"
        return ""


def memory_of(pid: int) -> int:
    """Bytes of memory that a process and its descendants take; files that are only read do not count."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(_private(p) for p in (process, *process.children(recursive=True)))
    return 0


def exact_memory_of(pid: int) -> int:
    """:func:`memory_of` with memory that several of them share counted once; slower."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return sum(_proportional(p) for p in (process, *process.children(recursive=True)))
    return 0


def _private(process: psutil.Process) -> int:
    with contextlib.suppress(OSError, psutil.Error):
        if psutil.LINUX:
            return _sum_of(Path(f"/proc/{process.pid}/status"), ("RssAnon:", "RssShmem:", "VmSwap:"))
        return int(process.memory_info().rss)
    return 0


def _proportional(process: psutil.Process) -> int:
    with contextlib.suppress(OSError):
        return _sum_of(Path(f"/proc/{process.pid}/smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:", "SwapPss:"))
    return _private(process)


def _sum_of(path: Path, fields: tuple[str, ...]) -> int:
    """Bytes in the lines of a file of /proc that begin with these words; they are given in kB."""
    lines = path.read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(fields))
