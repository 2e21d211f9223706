"""Who is told when a job is over."""

from __future__ import annotations

from typing import Any

from apps.jobs.models import Job, Pipeline
from apps.jobs.states import ACTIVE, State
from apps.notifications import services as notifications

# A job that took less was watched anyway.
WORTH_TELLING_SECONDS = 30.0


def finished(job: Job) -> None:
    """Tell the project's webhooks, and the person who started the job; in the transaction of its end.

    Of a pipeline people are told once: when it is done, or what broke it.
    """
    event = f"job.{job.state}"
    notifications.emit(project_id=job.project_id, event=event, data=_payload(job))
    if job.state == State.FAILED:
        _tell(job, "error", f"{job.title}: failed", f"{job.error_message} {job.error_hint}".strip())
    if job.pipeline is not None:
        _pipeline_finished(job, job.pipeline)
    elif job.state == State.SUCCEEDED and _seconds(job) >= WORTH_TELLING_SECONDS:
        _tell(job, "success", f"{job.title}: done", "")


def _pipeline_finished(job: Job, pipeline: Pipeline) -> None:
    others = Job.objects.filter(pipeline=pipeline)
    if others.filter(state__in=ACTIVE).exists():
        return
    states = set(others.values_list("state", flat=True))
    state = next((s.value for s in (State.FAILED, State.CANCELLED) if s in states), State.SUCCEEDED.value)
    data = {"id": str(pipeline.pk), "name": pipeline.name, "state": state}
    notifications.emit(project_id=job.project_id, event="pipeline.finished", data=data)
    if state == State.SUCCEEDED:
        _tell(job, "success", f"{pipeline.name}: all {others.count()} steps are done", "")


def _tell(job: Job, level: str, title: str, message: str) -> None:
    if job.created_by is not None:
        notifications.notify(
            user=job.created_by,
            project=job.project,
            kind=f"job.{job.state}",
            level=level,
            title=title,
            message=message,
            subject=job,
        )


def _seconds(job: Job) -> float:
    if job.started_at is None or job.finished_at is None:
        return 0.0
    return (job.finished_at - job.started_at).total_seconds()


def _payload(job: Job) -> dict[str, Any]:
    error = {"code": job.error_code, "message": job.error_message, "hint": job.error_hint}
    return {
        "id": str(job.pk),
        "kind": job.kind,
        "title": job.title,
        "state": job.state,
        "subject_type": job.subject_type,
        "subject_id": str(job.subject_id),
        "pipeline": str(job.pipeline_id) if job.pipeline_id else None,
        "error": error if job.error_code else None,
    }
