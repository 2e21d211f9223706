"""What workers do with jobs: claim, report, finish; and what happens when one of them dies.

Everything here is fenced: a worker shows the token of its lease, and when the lease has gone to
somebody else, nothing it says has any effect.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import F

from apps.artifacts import services as artifacts
from apps.artifacts import storage, uploads
from apps.core import clock
from apps.core.ids import uuid7
from apps.jobs.announce import announce, wake_workers
from apps.jobs.kinds import INCOMING, OUT, get_kind
from apps.jobs.models import Job, JobEvent, WorkerNode
from apps.jobs.queue import in_turn
from apps.jobs.states import LEASED, State
from apps.jobs.transitions import move
from apps.jobs.usage import may_run
from microscope.params import JobEvent as EngineEvent

log = structlog.get_logger(__name__)


class LeaseLost(Exception):
    """The job belongs to somebody else now, or is over."""


class NewEvent(msgspec.Struct, kw_only=True):
    """An event to be appended to a job's history."""

    kind: str
    message: str = ""
    level: str = "info"
    data: dict[str, Any] = {}


def workdir(job_id: UUID) -> Path:
    """The job's own folder. It is kept across attempts, so checkpoints survive."""
    return Path(settings.WORKBENCH_JOB_DIR) / str(job_id)


def _expiry() -> Any:
    return clock.now() + timedelta(seconds=settings.WORKBENCH_LEASE_SECONDS)


def claim(*, job_id: UUID, node: WorkerNode) -> Job | None:
    """Take a queued job; None when it is gone, taken or over, or when as many of its project or person run as may."""
    if not may_run(job_id):  # asked without a lock first: most of a long queue may have to wait
        return None
    with transaction.atomic():
        if not may_run(job_id, lock=True):
            return None
        now = clock.now()
        return move(
            "claim",
            job_id,
            message=f"Claimed by {node}.",
            attempt=F("attempt") + 1,
            worker=node,
            lease_token=uuid7(),
            lease_expires_at=_expiry(),
            heartbeat_at=now,
            started_at=now,
            rate=None,
        )


def claim_next(*, node: WorkerNode) -> Job | None:
    """Take the job whose turn it is; None when the queue is empty.

    A wake-up only says that something waits. Which job is done next is decided here, by the whole queue.
    """
    for job_id in in_turn():
        job = claim(job_id=job_id, node=node)
        if job is not None:
            return job  # else another worker was faster: the next one
    return None


def start(*, job_id: UUID, token: UUID) -> Job:
    """The child runs.

    Raises:
        LeaseLost: or cancellation was asked for, which :func:`state_of` tells.
    """
    job = move("start", job_id, token=token, message="Running.")
    if job is None:
        raise LeaseLost
    return job


def renew(*, job_id: UUID, token: UUID) -> bool:
    """Extend the lease; False when it is lost."""
    return bool(
        Job.objects.filter(pk=job_id, lease_token=token, state__in=LEASED).update(
            lease_expires_at=_expiry(), heartbeat_at=clock.now()
        )
    )


def state_of(*, job_id: UUID, token: UUID) -> State:
    """The state of a job whose lease is held.

    Raises:
        LeaseLost: it is not.
    """
    state = Job.objects.filter(pk=job_id, lease_token=token).values_list("state", flat=True).first()
    if state is None:
        raise LeaseLost
    return State(state)


@transaction.atomic
def report(
    *, job_id: UUID, token: UUID, progress: EngineEvent | None = None, events: Sequence[NewEvent] = ()
) -> Job:
    """Store progress and events, and announce them.

    Raises:
        LeaseLost: nothing was stored.
    """
    values: dict[str, Any] = {}
    if progress is not None:
        values = {
            "phase": progress.phase[:60],
            "done": progress.done,
            "total": progress.total,
            "unit": progress.unit[:40],
            "rate": progress.rate,
            "metrics": progress.metrics,
        }
    changed = Job.objects.filter(pk=job_id, lease_token=token, state__in=LEASED).update(
        seq=F("seq") + 1, event_seq=F("event_seq") + len(events), **values
    )
    if not changed:
        raise LeaseLost
    job = Job.objects.for_display().get(pk=job_id)
    first = job.event_seq - len(events) + 1
    rows = [
        JobEvent(
            job=job,
            seq=first + number,
            attempt=job.attempt,
            kind=event.kind,
            level=event.level,
            message=event.message,
            data=event.data,
        )
        for number, event in enumerate(events)
    ]
    JobEvent.objects.bulk_create(rows)
    announce(job, rows)
    return job


def thin_metrics(job_id: UUID) -> int:
    """Drop every second point of the curves but the newest; returns how many are left."""
    points = JobEvent.objects.filter(job_id=job_id, kind=JobEvent.Kind.METRICS)
    numbers = list(points.order_by("-seq").values_list("seq", flat=True))
    doomed = numbers[1::2]
    for start_at in range(0, len(doomed), 500):
        points.filter(seq__in=doomed[start_at : start_at + 500]).delete()
    return len(numbers) - len(doomed)


def succeed(
    *, job: Job, token: UUID, result: dict[str, Any], files: list[dict[str, Any]], digest: Any
) -> Job:
    """Commit the result: state, artifact and result rows in one transaction, or none of them.

    Args:
        files: listing of the output folder, made beforehand.
        digest: what the kind's ``digest`` returned.

    Raises:
        LeaseLost: the lease is gone; nothing happened.
        MicroscopeError: the kind refused the result.
    """
    kind = get_kind(job.kind)
    out = workdir(job.pk) / OUT
    renamed = False
    try:
        with transaction.atomic():
            moved = move("succeed", job.pk, token=token, message="Succeeded.", result=result, rate=job.rate)
            if moved is None:
                raise LeaseLost
            if kind.artifact is not None:
                moved.artifact = artifacts.commit_folder(
                    project_id=job.project_id, kind=kind.artifact, source=out, name=job.pk, files=files
                )
                renamed = True
                moved.save(update_fields=["artifact"])
            kind.on_success(moved, result, digest)
            if kind.takes_in:
                uploads.discard(uploads.used_by(job.pk))
    except BaseException:
        if renamed:  # by us: a zombie must not take back what the rightful owner is just committing
            recover_output(job)
        raise
    if moved.artifact is not None:
        storage.drop_scratch(moved.artifact.local_path)
    return moved


def recover_output(job: Job) -> None:
    """Bring back an output folder that was moved although the transaction around did not commit."""
    kind = get_kind(job.kind)
    if kind.artifact is not None:
        artifacts.uncommit_folder(kind=kind.artifact, name=job.pk, source=workdir(job.pk) / OUT)


def _drop_imported(job_id: UUID) -> None:
    """Remove what an import has laid out and unpacked: its next attempt begins anew, and nobody counts these bytes."""
    folder = workdir(job_id)
    if (folder / INCOMING).is_dir():
        for name in (INCOMING, OUT):
            shutil.rmtree(folder / name, ignore_errors=True)


@transaction.atomic
def fail(*, job: Job, token: UUID, code: str, message: str, hint: str = "") -> Job:
    """The job is over without a result.

    Raises:
        LeaseLost: the lease is gone, or the job was being cancelled.
    """
    moved = move(
        "fail",
        job.pk,
        token=token,
        level="error",
        message=message,
        error_code=code[:60],
        error_message=message,
        error_hint=hint,
        rate=None,
    )
    if moved is None:
        raise LeaseLost
    get_kind(job.kind).on_failure(moved)
    transaction.on_commit(lambda: _drop_imported(job.pk), robust=True)
    return moved


@transaction.atomic
def confirm_cancel(*, job: Job, token: UUID) -> Job:
    """The child of a job that was asked to stop has stopped.

    Raises:
        LeaseLost: the lease is gone.
    """
    moved = move("confirm_cancel", job.pk, token=token, message="Cancelled.", rate=None)
    if moved is None:
        raise LeaseLost
    get_kind(job.kind).on_failure(moved)
    transaction.on_commit(lambda: _drop_imported(job.pk), robust=True)
    return moved


@transaction.atomic
def give_back(*, job: Job, token: UUID) -> Job:
    """Return a job because the worker shuts down; the attempt does not count.

    Raises:
        LeaseLost: the lease is gone, or the job was being cancelled.
    """
    now = clock.now()
    moved = move(
        "give_back",
        job.pk,
        token=token,
        message="The worker is shutting down; the job waits for another.",
        attempt=F("attempt") - 1,
        worker=None,
        queued_at=now,
        woken_at=now,
        rate=None,
    )
    if moved is None:
        raise LeaseLost
    transaction.on_commit(lambda: wake_workers(moved.pk), robust=True)
    return moved


WORKER_LOST = (
    "worker_lost",
    "The worker doing this job disappeared.",
    "Try again; if it happens every time, look at the worker's log and its memory.",
)


@transaction.atomic
def lose(*, job: Job, token: UUID, error: tuple[str, str, str] = WORKER_LOST) -> Job | None:
    """A lease ended without a result: queue the job again, or end it after its last attempt.

    Args:
        job: as it was when the lease was found lost.
        error: code, message and hint for a job that has no attempts left.

    Returns:
        the job, or None when somebody else had dealt with it.
    """
    code, message, hint = error
    kind = get_kind(job.kind)
    cancelled = move(
        "lose_cancelled", job.pk, token=token, message="Cancelled; its worker is gone.", rate=None
    )
    if cancelled is not None:
        kind.on_failure(cancelled)
        return cancelled
    # The attempt cannot change while the token is the same, so it is safe to decide by the row read before.
    if job.attempt < job.max_attempts:
        now = clock.now()
        moved = move(
            "lose",
            job.pk,
            token=token,
            level="warning",
            message=f"{message} Attempt {job.attempt} of {job.max_attempts}; the job is queued again.",
            worker=None,
            queued_at=now,
            woken_at=now,
            rate=None,
        )
        if moved is not None:
            transaction.on_commit(lambda: wake_workers(job.pk), robust=True)
        return moved
    moved = move(
        "lose_for_good",
        job.pk,
        token=token,
        level="error",
        message=message,
        error_code=code,
        error_message=f"{message} That was attempt {job.attempt} of {job.max_attempts}.",
        error_hint=hint,
        rate=None,
    )
    if moved is not None:
        kind.on_failure(moved)
    return moved


def reap() -> int:
    """Deal with every job whose lease ran out; returns how many there were."""
    lost = 0
    for job in Job.objects.expired(clock.now()):
        if job.lease_token is not None and lose(job=job, token=job.lease_token) is not None:
            lost += 1
            log.warning("job_lost", job=str(job.pk), attempt=job.attempt, worker=str(job.worker_id))
    return lost


class Reminder(NamedTuple):
    """How many jobs were waiting long, and for how many a new announcement went out."""

    queued: int
    sent: int


def remind() -> Reminder:
    """Announce queued jobs again that nobody took. For workers that are idle."""
    now = clock.now()
    patience = timedelta(seconds=settings.WORKBENCH_WAKEUP_SECONDS)
    waiting = Job.objects.filter(state=State.QUEUED, queued_at__lt=now - patience).order_by("queued_at")[:20]
    sent = queued = 0
    for job in waiting:
        queued += 1
        # The condition lets one of several idle workers do it.
        due = Job.objects.filter(pk=job.pk, state=State.QUEUED, woken_at__lt=now - patience)
        if due.update(woken_at=now):
            sent += wake_workers(job.pk)
    return Reminder(queued, sent)
