"""Telling browsers and workers that a job changed. Losing any of these messages is harmless."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
import structlog
from django.db import transaction

from apps.core.broker import app
from apps.core.publish import job_group, project_jobs_group, publish
from apps.jobs.models import Job, JobEvent
from apps.jobs.summary import JobSummary, summaries, summarise_event

log = structlog.get_logger(__name__)

RUN_JOB = "worker.run_job"


def wake_workers(job_id: UUID) -> bool:
    """Tell a worker that a job waits. False when the broker is away: an idle worker is reminded later."""
    try:
        app.send_task(RUN_JOB, args=[str(job_id)], ignore_result=True, retry=False)
    except Exception as error:  # whatever the transport raises, the row in the database is what counts
        log.warning("wakeup_failed", job=str(job_id), error=str(error))
        return False
    return True


def announce(job: Job, events: Sequence[JobEvent] = ()) -> None:
    """Publish the job's state, and its new events, once the transaction around has committed."""
    shown = [msgspec.to_builtins(summarise_event(event)) for event in events]

    def send() -> None:
        # Only now: a job that succeeds gets its artifact after its state.
        publish_summary(summaries([job])[0], transient=False)
        if shown:
            publish(job_group(job.pk), {"type": "job.events", "job": str(job.pk), "events": shown})

    transaction.on_commit(send, robust=True)


def publish_summary(summary: JobSummary, *, transient: bool) -> None:
    """Publish a state; a transient one is progress between two durable ones and repeats their ``seq``."""
    message: dict[str, Any] = {
        "type": "job.changed",
        "job": msgspec.to_builtins(summary),
        "transient": transient,
    }
    publish(project_jobs_group(summary.project), message)
