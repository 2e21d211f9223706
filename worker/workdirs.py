"""Folders of jobs: one child at a time works in one, and they go when the job is over."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import structlog
from django.conf import settings

from apps.artifacts import storage
from apps.jobs.leases import LeaseLost
from apps.jobs.models import Job
from apps.jobs.states import State

log = structlog.get_logger(__name__)

# How long the child of an earlier attempt may take to leave by itself, and then after SIGKILL.
_LEAVES_SECONDS, _KILLED_SECONDS = 2.0, 8.0


class WorkdirBusy(Exception):
    """A child of an earlier attempt still works in the folder."""


@contextlib.contextmanager
def locked(workdir: Path, give_up: Callable[[], bool]) -> Iterator[int]:
    """Hold the folder's lock, whose descriptor a child may inherit.

    A child of an earlier attempt that still holds it is killed.

    Args:
        give_up: whether waiting is pointless by now, because the lease is lost.

    Raises:
        LeaseLost: it was given up.
        WorkdirBusy: not even killing helped.
    """
    descriptor = os.open(workdir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _acquire(descriptor, workdir, give_up)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, workdir: Path, give_up: Callable[[], bool]) -> None:
    began, killed = time.monotonic(), False
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waited = time.monotonic() - began
            if give_up():
                raise LeaseLost from None
            if waited > _LEAVES_SECONDS + _KILLED_SECONDS:
                log.error("workdir_busy", folder=str(workdir))
                raise WorkdirBusy from None
            if not killed and waited > _LEAVES_SECONDS:
                killed = kill_leftover(workdir)
            time.sleep(0.05)


def record_child(workdir: Path, pid: int) -> None:
    """Note who is at work here, so that a later attempt can end a leftover."""
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        (workdir / "child.json").write_text(json.dumps({"pid": pid, "started": started}))


def kill_leftover(workdir: Path) -> bool:
    """Kill the child of an earlier attempt if it still runs; True when there was one."""
    try:
        note: dict[str, Any] = json.loads((workdir / "child.json").read_text())
        process = psutil.Process(int(note["pid"]))
        if abs(process.create_time() - float(note["started"])) > 1:
            return False
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False
    return True


def clean_workdirs(older_than: float) -> int:
    """Remove folders of jobs that are over and untouched for so many seconds; returns how many.

    That of a job that succeeded goes whatever its age: its worker died between the result and the broom.
    """
    removed = 0
    root = Path(settings.WORKBENCH_JOB_DIR)
    for folder in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(ValueError, FileNotFoundError):
            old = time.time() - folder.stat().st_mtime >= older_than
            job = Job.objects.filter(pk=UUID(folder.name)).select_related("artifact").first()
            succeeded = job is not None and job.state == State.SUCCEEDED
            if succeeded and job is not None and job.artifact is not None:
                storage.drop_scratch(job.artifact.local_path)
            if succeeded or (old and (job is None or job.is_final)):
                shutil.rmtree(folder, ignore_errors=True)
                removed += 1
    return removed
