"""How much memory, time and disk the process of a job may take, and who makes sure of it.

Linux enforces what it can by itself: the size of one file, processor time and, where no model is loaded, private
memory. Libraries for accelerators reserve far more address space than they use, so the memory of a process that
loads models is measured by its supervisor instead. Elapsed time is the supervisor's, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from django.conf import settings

from apps.jobs.kinds import JobKind

_GIB = 2**30
_SHARE_OF_MACHINE = 0.9  # of what the machine has: the rest is for the portal and the system
# Signals by which the system ends a process that took too much.
BY_SIGNAL: dict[int, str] = {-signal.SIGXCPU: "time", -signal.SIGXFSZ: "file"}
_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one job's processes may take.

    Args:
        memory: bytes, all its processes together.
        seconds: from its start to its end, of one attempt.
        file: bytes of the largest file it may write.
        confined: whether the system is to refuse memory beyond that, per process; not where models are loaded.
        memory_setting: the variable an administrator changes, and so for the others.
    """

    memory: int
    seconds: float
    file: int
    confined: bool = False
    memory_setting: str = "WORKBENCH_JOB_MEMORY_MB"
    seconds_setting: str = "WORKBENCH_JOB_SECONDS"
    file_setting: str = "WORKBENCH_JOB_FILE_GB"


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container around this process, has."""
    total = int(psutil.virtual_memory().total)
    for path in _CGROUP:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            total = min(total, int(path.read_text()))
    return total


def limits_of(kind: JobKind, config: Mapping[str, Any]) -> Limits:
    """The limits of a job of that kind with that configuration."""
    computes = kind.computes(config)
    whole = int(machine_memory() * _SHARE_OF_MACHINE)
    memory = (settings.WORKBENCH_JOB_MEMORY_MB if computes else settings.WORKBENCH_IMPORT_MEMORY_MB) * 2**20
    return Limits(
        memory=min(memory or whole, whole),
        seconds=settings.WORKBENCH_IMPORT_SECONDS if kind.takes_in else settings.WORKBENCH_JOB_SECONDS,
        file=(settings.WORKBENCH_IMPORT_FILE_GB if kind.takes_in else settings.WORKBENCH_JOB_FILE_GB) * _GIB,
        confined=not computes,
        memory_setting="WORKBENCH_JOB_MEMORY_MB" if computes else "WORKBENCH_IMPORT_MEMORY_MB",
        seconds_setting="WORKBENCH_IMPORT_SECONDS" if kind.takes_in else "WORKBENCH_JOB_SECONDS",
        file_setting="WORKBENCH_IMPORT_FILE_GB" if kind.takes_in else "WORKBENCH_JOB_FILE_GB",
    )


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


class Watch:
    """Looks at a running process from time to time.

    Args:
        pid: of the process; what it starts counts as its own.
        limits: what they may take.
    """

    def __init__(self, pid: int, limits: Limits) -> None:
        self._pid, self._limits, self._started = pid, limits, time.monotonic()
        self._taken = 0  # bytes of memory, when that was too much

    def exceeded(self) -> str:
        """What has been taken too much of: ``time``, ``memory``, or nothing."""
        if time.monotonic() - self._started > self._limits.seconds:
            return "time"
        if memory_of(self._pid) > self._limits.memory:
            self._taken = exact_memory_of(self._pid)
            if self._taken > self._limits.memory:
                return "memory"
        return ""

    def refusal(self, what: str) -> tuple[str, str, str]:
        """Code, sentence and remedy for a process that took too much of ``memory``, ``file`` or ``time``."""
        limits = self._limits
        match what:
            case "memory":
                return (
                    "memory_limit",
                    f"The job took {self._taken / _GIB:.1f} GiB of memory; {limits.memory / _GIB:.1f} are allowed.",
                    "Try a smaller batch, buffer, model or file; an administrator can raise the limit "
                    f"({limits.memory_setting}).",
                )
            case "file":
                return (
                    "file_limit",
                    f"The job wrote a file of more than {limits.file / _GIB:g} GiB, which is the most it may.",
                    f"Make less of it; an administrator can raise the limit ({limits.file_setting}).",
                )
            case _:
                return (
                    "time_limit",
                    f"The job worked for longer than {limits.seconds:g} s.",
                    "Make it smaller; training and recording go on from their checkpoint when tried again. "
                    f"An administrator can raise the limit ({limits.seconds_setting}).",
                )


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
