"""What Celery runs: one task that does a job, and the daily tidying up."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import structlog
from celery import signals
from django.core.management import call_command

from apps.core import clock
from apps.core.broker import app
from apps.jobs import leases
from apps.jobs.announce import RUN_JOB
from apps.jobs.models import WorkerNode
from worker.node import Node
from worker.supervise import Supervision
from worker.workdirs import clean_workdirs

log = structlog.get_logger(__name__)

_KEEP_SECONDS = 7 * 24 * 3600.0

node = Node()


@signals.worker_ready.connect  # type: ignore[untyped-decorator]
def _ready(**kwargs: Any) -> None:
    node.start()
    clean_workdirs(_KEEP_SECONDS)  # an earlier worker may have died before it did


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]
def _shutting_down(**kwargs: Any) -> None:
    # Called inside a signal handler: only a flag may be set here. The supervision sees it.
    node.draining.set()


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator]
def _shutdown(**kwargs: Any) -> None:
    node.stop()


@app.task(name=RUN_JOB)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Claim a job and do it: the one named or, when others come first, one of those.

    Every queued job has sent a wake-up, so all get done; one too many finds nothing and does nothing.
    """
    node.heard = time.monotonic()
    if node.draining.is_set():
        return
    row = node.row or node.start()
    job = leases.claim_next(node=row)
    if job is None:
        return
    structlog.contextvars.bind_contextvars(job=str(job.pk))
    node.busy.set()
    try:
        Supervision(job, node.draining).run()
    finally:
        node.busy.clear()
        structlog.contextvars.clear_contextvars()


@app.task(name="worker.tidy_up")  # type: ignore[untyped-decorator]
def tidy_up() -> None:
    """Remove expired sessions, files nothing refers to, folders of old jobs, and rows of workers that are long gone."""
    call_command("clearsessions")
    call_command("collect_garbage", verbosity=0)
    clean_workdirs(_KEEP_SECONDS)
    WorkerNode.objects.filter(heartbeat_at__lt=clock.now() - timedelta(seconds=_KEEP_SECONDS)).delete()


app.conf.beat_schedule = {
    "tidy-up": {"task": "worker.tidy_up", "schedule": timedelta(hours=6), "options": {"expires": 3600}},
}
