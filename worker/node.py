"""This worker process as the portal knows it: a row with a heartbeat, which also looks after lost jobs."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from importlib import metadata
from pathlib import Path

import psutil
import structlog
from django.conf import settings
from django.db import connection

from apps.core import clock, heartbeat
from apps.jobs import leases
from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import LEASED
from worker.outbox import Outbox

log = structlog.get_logger(__name__)


def process_started(pid: int) -> float | None:
    """When the process of that id started; None when there is none."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def runs_here(node: WorkerNode) -> bool:
    """Whether the worker of that row is still a process of this host."""
    started = process_started(node.pid)
    return started is not None and abs(started - node.process_started) < 2


class Node:
    """The row of this process, its heartbeat, and the reaper.

    The reaper lives in a thread of the worker and not in a Celery task: the one task slot is taken
    while a job runs, which may be hours, and lost jobs should not wait for that.
    """

    def __init__(self) -> None:
        self.draining = threading.Event()
        self.busy = threading.Event()
        self.heard = 0.0  # when a wake-up arrived last
        self._stop = threading.Event()
        self._reminded = 0.0  # since when reminders have gone unanswered; 0: they have not
        self._thread: threading.Thread | None = None
        self._outbox = Outbox()
        self.row: WorkerNode | None = None

    def start(self) -> WorkerNode:
        """Register, take back jobs of dead workers of this host, and start the heartbeat."""
        pid = os.getpid()
        self.row = WorkerNode.objects.create(
            host=socket.gethostname(),
            pid=pid,
            process_started=process_started(pid) or time.time(),
            version=metadata.version("interpretability-workbench"),
            heartbeat_at=clock.now(),
        )
        reclaim_dead(self.row.host)
        self._thread = threading.Thread(target=self._beat, name="node", daemon=True)
        self._thread.start()
        self._outbox.start()
        return self.row

    def stop(self) -> None:
        """The worker is leaving."""
        self._stop.set()
        self._outbox.stop()
        if self._thread is not None:
            self._thread.join(timeout=5)
        if self.row is not None:
            WorkerNode.objects.filter(pk=self.row.pk).update(stopped_at=clock.now())

    def _beat(self) -> None:
        looked = 0.0
        while not self._stop.wait(min(settings.WORKBENCH_HEARTBEAT_SECONDS, settings.WORKBENCH_REAP_SECONDS)):
            try:
                assert self.row is not None
                WorkerNode.objects.filter(pk=self.row.pk).update(heartbeat_at=clock.now())
                heartbeat.beat(Path(settings.WORKBENCH_RUN_DIR), "compute")
                if time.monotonic() - looked >= settings.WORKBENCH_REAP_SECONDS:
                    looked = time.monotonic()
                    leases.reap()
                    self._remind()
            except Exception as error:  # a locked database or a dead broker must not end the heartbeat
                log.warning("heartbeat_failed", error=str(error))
        connection.close()

    def _remind(self) -> None:
        """Announce queued jobs nobody takes; when not even that reaches this idle worker, restart it.

        A busy worker stays quiet: reminders it cannot answer would only pile up.
        """
        if self.busy.is_set() or self.draining.is_set():
            self._reminded = 0.0
            return
        now = time.monotonic()
        waiting = leases.remind()
        if waiting.sent and not self._reminded:
            self._reminded = now
        if not waiting.queued or self.heard > self._reminded:
            self._reminded = 0.0
        elif self._reminded and now - self._reminded > 2 * settings.WORKBENCH_WAKEUP_SECONDS:
            self._restart()

    def _restart(self) -> None:
        """Replace this process by a fresh one of the same kind and id.

        After a broker went away at the wrong moment, a Celery consumer can stay connected and hear
        nothing for ever. Nobody notices from outside, since the process lives and its heart beats.
        """
        log.error("worker_hears_nothing", remedy="restarting")
        assert self.row is not None
        WorkerNode.objects.filter(pk=self.row.pk).update(stopped_at=clock.now())
        connection.close()
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 (no shell is wanted)


def reclaim_dead(host: str) -> int:
    """Queue the jobs of workers that died on this host, without waiting for their leases; returns how many."""
    count = 0
    for job in Job.objects.filter(state__in=LEASED, worker__host=host).select_related("worker"):
        if job.worker is None or job.lease_token is None or runs_here(job.worker):
            continue
        if leases.lose(job=job, token=job.lease_token) is not None:
            count += 1
            log.warning("job_reclaimed", job=str(job.pk), worker=str(job.worker))
    for node in WorkerNode.objects.filter(host=host, stopped_at=None):
        if not runs_here(node):
            WorkerNode.objects.filter(pk=node.pk).update(stopped_at=clock.now())
    return count
