"""What people do with jobs: submit, cancel, try again, give up on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import IntegrityError, models, transaction
from django.db.models import F

from apps.artifacts import uploads
from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import Forbidden, Refused
from apps.core.idempotency import gone, replayed, reused
from apps.jobs.announce import announce, wake_workers
from apps.jobs.kinds import CloneRequest, get_kind
from apps.jobs.models import Job, JobEvent, Pipeline
from apps.jobs.states import State
from apps.jobs.transitions import ABANDONED, move
from apps.jobs.usage import require_room_for_job
from apps.projects.models import Project
from apps.projects.policies import Action, require

log = structlog.get_logger(__name__)


@transaction.atomic
def submit(
    *,
    actor: Any,
    project: Project,
    kind: str,
    title: str,
    subject: models.Model,
    params: dict[str, Any],
    idempotency_key: str = "",
    after: Job | None = None,
    pipeline: Pipeline | None = None,
) -> Job:
    """Queue a job about ``subject``; workers hear of it when the transaction around commits.

    Args:
        after: the job whose result this one needs; it waits for that, and is cancelled if it fails.
        pipeline: the chain it is part of.

    Raises:
        NotVisible, Forbidden: the actor may not start jobs here.
        Refused: ``job_before_ended`` when ``after`` has failed.
        QuotaExceeded: too many wait, or storage or compute is used up (413, 429).
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, project)
    require_room_for_job(project.pk, actor)
    state = State.QUEUED if after is None else _state_after(after)
    now = clock.now()
    job = Job.objects.create(
        project=project,
        created_by=actor,
        kind=kind,
        title=title[:200],
        subject_type=subject._meta.model_name or "",
        subject_id=subject.pk,
        params=get_kind(kind).validate(params),
        state=state,
        after=after,
        pipeline=pipeline,
        max_attempts=settings.WORKBENCH_MAX_ATTEMPTS,
        queued_at=now,
        woken_at=now,
        idempotency_key=idempotency_key or None,
    )
    audit.record(actor=actor, action="job.submitted", target=job, project_id=project.pk, data={"kind": kind})
    _queued(job)
    return job


def submit_once(
    *,
    actor: Any,
    kind: str,
    idempotency_key: str,
    make: Callable[[], Job],
    results: type[models.Model],
    project_id: UUID | None = None,
    subject_id: UUID | None = None,
) -> Job:
    """Run ``make``, which creates a subject and submits its job, unless the key was used before.

    Args:
        results: the model of the job's subject, whose row must still be there.
        project_id: where the request belongs; None when it makes a project of its own.
        subject_id: what the request is about, when that exists already.

    Returns:
        the job, made now or by the earlier request.

    Raises:
        Refused: ``idempotency_key_reused`` when the key came with a request about something else.
        NotVisible: what it has made is gone, or the actor may not see it any more.
    """

    def earlier() -> Job | None:
        if not idempotency_key:
            return None
        job = Job.objects.filter(created_by=actor, kind=kind, idempotency_key=idempotency_key).first()
        if job is None:
            return None
        replayed(job, actor)
        if project_id not in (None, job.project_id) or subject_id not in (None, job.subject_id):
            raise reused()
        if not results._default_manager.filter(pk=job.subject_id).exists():
            raise gone()
        return job

    known = earlier()
    if known is not None:
        return known
    try:
        with transaction.atomic():
            return make()
    except (IntegrityError, Refused):
        # The same request arrived twice at once and the other one was faster: its name or key is taken.
        known = earlier()
        if known is None:
            raise
        return known


@transaction.atomic
def cancel(*, actor: Any, job: Job) -> Job:
    """Ask for a job to stop: a queued one is cancelled now, a running one as soon as its worker has stopped it.

    Raises:
        Refused: ``job_finished``.
    """
    _require_control(actor, job)
    who = f"Cancelled by {actor.get_username()}."
    moved = move("cancel_queued", job.pk, message=who)
    if moved is not None:
        get_kind(job.kind).on_failure(moved)
    else:
        moved = move("ask_cancel", job.pk, message=who, cancel_asked_at=clock.now())
    if moved is None:
        job = Job.objects.for_display().get(pk=job.pk)
        if job.state in (State.CANCELLING, State.CANCELLED):
            return job
        raise Refused("job_finished", f"The job has {job.state} already.", status=409)
    audit.record(actor=actor, action="job.cancelled", target=moved, project_id=moved.project_id)
    return moved


@transaction.atomic
def retry(*, actor: Any, job: Job) -> Job:
    """Queue a failed or cancelled job again. Its folder was kept, so work with checkpoints continues.

    What was cancelled because of it waits for it again, so that a pipeline continues where it broke.

    Raises:
        Refused: ``job_not_finished``, ``job_succeeded``, or ``job_before_ended`` when it needs the result of
            a job that failed.
        QuotaExceeded: it and what follows it are more than may wait.
    """
    _require_control(actor, job)
    require_room_for_job(job.project_id, actor, jobs=1 + _count_abandoned(job))
    moved = _start_again(job, f"Started again by {actor.get_username()}.")
    if moved is None:
        job.refresh_from_db()
        if job.state == State.SUCCEEDED:
            raise Refused(
                "job_succeeded", "The job has succeeded; there is nothing to try again.", status=409
            )
        raise Refused("job_not_finished", f"The job is {job.state}.", "Cancel it first.", status=409)
    audit.record(actor=actor, action="job.retried", target=moved, project_id=moved.project_id)
    return moved


def _start_again(job: Job, message: str) -> Job | None:
    now = clock.now()
    state = State.QUEUED if job.after is None else _state_after(job.after)
    moved = move(
        "retry" if state == State.QUEUED else "retry_waiting",
        job.pk,
        message=message,
        attempt=0,
        queued_at=now,
        woken_at=now,
        cancel_asked_at=None,
        worker=None,
        error_code="",
        error_message="",
        error_hint="",
        rate=None,
    )
    if moved is None:
        return None
    uploads.hold(job.pk)
    get_kind(job.kind).on_retry(moved)
    if state == State.QUEUED:
        _wake_on_commit(moved)
    for follower in _abandoned(moved):
        _start_again(follower, f"“{moved.title}” was started again.")
    return moved


def _abandoned(job: Job) -> models.QuerySet[Job]:
    """What was cancelled because the job ended without a result."""
    return Job.objects.filter(after=job, state=State.CANCELLED, error_code=ABANDONED)


def _count_abandoned(job: Job) -> int:
    """How many jobs start again with this one, those after the next ones included."""
    return sum(1 + _count_abandoned(follower) for follower in _abandoned(job))


def _state_after(before: Job) -> State:
    """Where a job starts that needs the result of another."""
    # Locked until the job is stored, so that the other cannot end unseen meanwhile.
    before = Job.objects.select_for_update().get(pk=before.pk)
    if before.state == State.SUCCEEDED:
        return State.QUEUED
    if before.is_final:
        raise Refused(
            ABANDONED,
            f"It needs the result of “{before.title}”, which has {before.state}."
            if before.state == State.FAILED
            else f"It needs the result of “{before.title}”, which was cancelled.",
            "Try that one again: what comes after it follows by itself.",
            status=409,
        )
    return State.WAITING


@transaction.atomic
def set_priority(*, actor: Any, job: Job, priority: int) -> Job:
    """Let an unfinished job go before or after others; for administrators.

    Raises:
        Forbidden: the actor is none.
        Refused: ``job_finished``.
    """
    require(actor, Action.VIEW, job.project_id)
    if not actor.acts_as_staff:
        raise Forbidden("Priorities are set by administrators.", "Ask one.")
    changed = (
        Job.objects.filter(pk=job.pk)
        .active()
        .update(priority=priority, seq=F("seq") + 1, event_seq=F("event_seq") + 1)
    )
    job = Job.objects.for_display().get(pk=job.pk)
    if not changed:
        raise Refused("job_finished", f"The job has {job.state} already.", status=409)
    event = JobEvent.objects.create(
        job=job,
        seq=job.event_seq,
        attempt=job.attempt,
        kind=JobEvent.Kind.LOG,
        message=f"{actor.get_username()} set the priority to {priority}.",
    )
    announce(job, [event])
    audit.record(
        actor=actor,
        action="job.reprioritised",
        target=job,
        project_id=job.project_id,
        data={"priority": priority},
    )
    return job


def clone(*, actor: Any, job: Job, changes: dict[str, Any], name: str = "", idempotency_key: str = "") -> Job:
    """Submit a job like this one, with other parameters; the old one and its result stay.

    Raises:
        Refused: ``not_cloneable``, ``name_missing``, or what submitting such a job raises.
    """
    require(actor, Action.RUN_JOBS, job.project_id)
    kind = get_kind(job.kind)
    if kind.clone is None:
        raise Refused("not_cloneable", f"“{kind.title}” cannot be repeated this way.", status=409)
    if kind.named and not name:
        raise Refused("name_missing", "The new result needs a name.", status=400, attr="name")
    request = CloneRequest(
        actor=actor,
        job=job,
        params={**job.params, **changes},
        name=name,
        idempotency_key=idempotency_key,
    )
    return kind.clone(request)


@transaction.atomic
def mark_failed(*, actor: Any, job: Job) -> Job:
    """Give up on an unfinished job; its worker loses the lease and can no longer commit anything.

    Raises:
        Refused: ``job_finished``.
    """
    require(actor, Action.CONTROL_ANY_JOB, job.project_id)
    moved = move(
        "mark_failed",
        job.pk,
        message=f"Marked as failed by {actor.get_username()}.",
        level="error",
        error_code="marked_failed",
        error_message=f"{actor.get_username()} marked this job as failed.",
        error_hint="Try it again if it is still wanted.",
    )
    if moved is None:
        raise Refused("job_finished", "The job is finished already.", status=409)
    get_kind(job.kind).on_failure(moved)
    audit.record(actor=actor, action="job.marked_failed", target=moved, project_id=moved.project_id)
    return moved


@transaction.atomic
def cancel_pipeline(*, actor: Any, pipeline: Pipeline) -> None:
    """Ask every job of a pipeline to stop that has not ended.

    Raises:
        NotVisible, Forbidden: the actor may not control all of it.
        Refused: ``pipeline_finished``.
    """
    _require_control(actor, pipeline)
    # The last first: a job that is cancelled by hand is not cancelled because of the one before it.
    active = list(pipeline.jobs.active().order_by("-pk"))
    if not active:
        raise Refused("pipeline_finished", "Every job of it has ended already.", status=409)
    for job in active:
        cancel(actor=actor, job=job)


@transaction.atomic
def retry_pipeline(*, actor: Any, pipeline: Pipeline) -> None:
    """Continue a pipeline where it broke; what has succeeded is kept.

    Raises:
        NotVisible, Forbidden: the actor may not control all of it.
        Refused: ``pipeline_not_broken``.
    """
    _require_control(actor, pipeline)
    broken = pipeline.jobs.filter(state__in=(State.FAILED, State.CANCELLED)).order_by("pk")
    ids = list(broken.values_list("pk", flat=True))
    if not ids:
        raise Refused("pipeline_not_broken", "No job of it has failed or was cancelled.", status=409)
    for pk in ids:
        job = Job.objects.get(pk=pk)
        if job.is_final:  # else it was started again together with the one before it
            retry(actor=actor, job=job)


def refuse_while_active(subject: models.Model) -> None:
    """Keep people from deleting what a job is working on.

    Raises:
        Refused: ``job_active``.
    """
    active = Job.objects.about(subject.pk).active().first()
    if active is not None:
        raise Refused(
            "job_active", f"“{active.title}” is {active.state}.", "Cancel the job first.", status=409
        )


def _require_control(actor: Any, work: Job | Pipeline) -> None:
    """Whether the actor may cancel or retry: asked before anything is said about how far the work is."""
    own = work.created_by_id is not None and work.created_by_id == actor.pk
    require(actor, Action.CONTROL_OWN_JOB if own else Action.CONTROL_ANY_JOB, work.project_id)


def _queued(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(event_seq=F("event_seq") + 1)
    job = Job.objects.for_display().get(pk=job.pk)
    event = JobEvent.objects.create(
        job=job,
        seq=job.event_seq,
        kind=JobEvent.Kind.STATE,
        data={"state": job.state, "transition": "submit"},
    )
    announce(job, [event])
    if job.state == State.QUEUED:
        _wake_on_commit(job)


def _wake_on_commit(job: Job) -> None:
    transaction.on_commit(lambda: wake_workers(job.pk), robust=True)
