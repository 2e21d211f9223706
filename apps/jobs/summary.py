"""A job as browsers see it: the same struct over REST and over WebSockets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

import msgspec

from apps.core import clock
from apps.jobs.forecasts import UNKNOWN, Forecast, forecast
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job, JobEvent, Pipeline
from apps.jobs.states import ACTIVE, FINAL, LEASED, State

StateName = Literal[
    "waiting", "queued", "claimed", "running", "cancelling", "succeeded", "failed", "cancelled"
]


class JobError(msgspec.Struct, kw_only=True, frozen=True):
    """Why a job failed, and what to do about it."""

    code: str
    message: str
    hint: str


class JobSummary(msgspec.Struct, kw_only=True, frozen=True):
    """A job. ``seq`` grows by one with every durable change: a gap means a message was missed.

    ``queue_position`` counts from 1 for queued jobs and is 0 for all others. ``starts_in_seconds`` and
    ``lasts_seconds`` are guesses for jobs that have not started, from how long earlier ones took; null
    where there are none. A ``waiting`` job waits for the job ``after``. ``stalled`` says that the
    worker of an unfinished job has not been heard of for longer than its lease.
    """

    id: UUID
    project: UUID
    kind: str
    title: str
    subject_type: str
    subject_id: UUID
    state: StateName
    attempt: int
    max_attempts: int
    phase: str
    done: float
    total: float | None
    unit: str
    rate: float | None
    eta_seconds: float | None
    metrics: dict[str, float | None]
    error: JobError | None
    created_by: str | None
    worker: str | None
    artifact: UUID | None
    queue_position: int
    starts_in_seconds: float | None
    lasts_seconds: float | None
    priority: int
    after: UUID | None
    pipeline: UUID | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    heartbeat_at: datetime | None
    stalled: bool
    cancellable: bool
    retryable: bool
    cloneable: bool
    seq: int


class EventSummary(msgspec.Struct, kw_only=True, frozen=True):
    """One line of a job's history. ``data`` of metrics holds ``phase``, ``done``, ``rate`` and ``metrics``."""

    seq: int
    at: datetime
    attempt: int
    kind: Literal["state", "log", "metrics", "checkpoint"]
    level: Literal["info", "warning", "error"]
    message: str
    data: dict[str, Any]


def summaries(jobs: Iterable[Job]) -> list[JobSummary]:
    """The summaries of rows loaded with ``for_display``, with forecasts for those that have not started."""
    rows = list(jobs)
    forecasts = forecast(rows)
    return [summarise(job, forecasts.get(job.pk, UNKNOWN)) for job in rows]


def summarise(job: Job, forecast: Forecast = UNKNOWN) -> JobSummary:
    """The summary of a row loaded with ``for_display``; it reads nothing more."""
    error = None
    if job.error_code:
        error = JobError(code=job.error_code, message=job.error_message, hint=job.error_hint)
    eta = None
    if job.state == State.RUNNING and job.total and job.rate and job.rate > 0:
        eta = max(0.0, (job.total - job.done) / job.rate)
    stalled = (
        job.state in LEASED and job.lease_expires_at is not None and job.lease_expires_at < clock.lately()
    )
    return JobSummary(
        id=job.pk,
        project=job.project_id,
        kind=job.kind,
        title=job.title,
        subject_type=job.subject_type,
        subject_id=job.subject_id,
        state=job.state,  # type: ignore[arg-type]
        attempt=job.attempt,
        max_attempts=job.max_attempts,
        phase=job.phase,
        done=job.done,
        total=job.total,
        unit=job.unit,
        rate=job.rate,
        eta_seconds=eta,
        metrics=job.metrics,
        error=error,
        created_by=job.created_by.username if job.created_by else None,
        worker=str(job.worker) if job.worker else None,
        artifact=job.artifact_id,
        queue_position=forecast.position,
        starts_in_seconds=forecast.starts_in,
        lasts_seconds=forecast.lasts,
        priority=job.priority,
        after=job.after_id,
        pipeline=job.pipeline_id,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        heartbeat_at=job.heartbeat_at,
        stalled=stalled,
        cancellable=job.state in ACTIVE and job.state != State.CANCELLING,
        retryable=job.state in FINAL and job.state != State.SUCCEEDED,
        cloneable=get_kind(job.kind).clone is not None,
        seq=job.seq,
    )


class PipelineSummary(msgspec.Struct, kw_only=True, frozen=True):
    """Jobs submitted together, in the order they run. Its state follows from theirs."""

    id: UUID
    project: UUID
    name: str
    state: Literal["running", "succeeded", "failed", "cancelled"]
    created_by: str | None
    created_at: datetime
    cancellable: bool
    retryable: bool
    jobs: list[JobSummary]


def pipeline_summaries(pipelines: Iterable[Pipeline]) -> list[PipelineSummary]:
    """The summaries of rows loaded with ``for_display``."""
    rows = list(pipelines)
    forecasts = forecast(job for pipeline in rows for job in pipeline.jobs.all())
    return [_pipeline(pipeline, forecasts) for pipeline in rows]


def _pipeline(pipeline: Pipeline, forecasts: Mapping[UUID, Forecast]) -> PipelineSummary:
    jobs = list(pipeline.jobs.all())
    states = {job.state for job in jobs}
    if states & set(ACTIVE):
        state: Any = "running"
    else:
        state = next((s.value for s in (State.FAILED, State.CANCELLED) if s in states), "succeeded")
    return PipelineSummary(
        id=pipeline.pk,
        project=pipeline.project_id,
        name=pipeline.name,
        state=state,
        created_by=pipeline.created_by.username if pipeline.created_by else None,
        created_at=pipeline.created_at,
        cancellable=state == "running",
        retryable=bool(states & {State.FAILED, State.CANCELLED}),
        jobs=[summarise(job, forecasts.get(job.pk, UNKNOWN)) for job in jobs],
    )


def summarise_event(event: JobEvent) -> EventSummary:
    """The summary of one event."""
    return EventSummary(
        seq=event.seq,
        at=event.at,
        attempt=event.attempt,
        kind=event.kind,  # type: ignore[arg-type]
        level=event.level,  # type: ignore[arg-type]
        message=event.message,
        data=event.data,
    )
