"""The one way a job's state changes: a conditional update, its event, its announcement, and what follows from it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F

from apps.artifacts import uploads
from apps.core import clock
from apps.jobs import notices
from apps.jobs.announce import announce, wake_workers
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job, JobEvent
from apps.jobs.states import FINAL, LEASED, TRANSITIONS, State

ABANDONED = "job_before_ended"


@transaction.atomic
def move(
    name: str,
    job_id: UUID,
    *,
    token: UUID | None = None,
    message: str = "",
    level: str = JobEvent.Level.INFO,
    **values: Any,
) -> Job | None:
    """Take one transition of the table.

    Args:
        token: the lease of the worker that asks; needed by fenced transitions.
        values: other columns set by the same update.

    Returns:
        The job as it is now, or None when somebody else was faster or the lease is not theirs.
    """
    transition = TRANSITIONS[name]
    rows = Job.objects.filter(pk=job_id, state__in=transition.sources)
    if transition.fenced:
        if token is None:
            raise ValueError(f"the transition {name} needs a lease")
        rows = rows.filter(lease_token=token)
    if transition.target not in LEASED:
        values |= {"lease_token": None, "lease_expires_at": None}
    finished = clock.now() if transition.target in FINAL else None
    changed = rows.update(
        state=transition.target,
        finished_at=finished,
        seq=F("seq") + 1,
        event_seq=F("event_seq") + 1,
        **values,
    )
    if not changed:
        return None
    job = Job.objects.for_display().get(pk=job_id)
    event = JobEvent.objects.create(
        job=job,
        seq=job.event_seq,
        attempt=job.attempt,
        kind=JobEvent.Kind.STATE,
        level=level,
        message=message,
        data={"state": job.state, "transition": name},
    )
    announce(job, [event])
    if job.state in FINAL:
        uploads.let_go(job.pk)
        _settle_followers(job)
        notices.finished(job)
    return job


def _settle_followers(job: Job) -> None:
    """Start what waited for the job, or cancel it with the reason. Runs in the transaction of its end."""
    for follower in Job.objects.filter(after=job, state=State.WAITING):
        if job.state == State.SUCCEEDED:
            release(follower)
            continue
        cause = job.error_message if job.error_code == ABANDONED else f"“{job.title}” {_ended(job)}."
        moved = move(
            "abandon",
            follower.pk,
            level="warning",
            message=cause,
            error_code=ABANDONED,
            error_message=cause,
            error_hint="Try that one again: what comes after it follows by itself.",
        )
        if moved is not None:
            get_kind(moved.kind).on_failure(moved)


def release(job: Job) -> None:
    """Queue a job whose predecessor has succeeded."""
    now = clock.now()
    moved = move("release", job.pk, message="Its turn has come.", queued_at=now, woken_at=now)
    if moved is not None:
        transaction.on_commit(lambda: wake_workers(moved.pk), robust=True)


def _ended(job: Job) -> str:
    return "failed" if job.state == State.FAILED else "was cancelled"
