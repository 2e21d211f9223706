"""How much of the queue and of the machines a project and a person use."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db.models import DurationField, ExpressionWrapper, F, Q, QuerySet, Sum, Value
from django.db.models.functions import Coalesce, Greatest

from apps.core import clock
from apps.jobs.models import Job
from apps.jobs.states import LEASED, State
from apps.projects.quotas import COMPUTE_DAYS, Holder, excess, lock_holders, register_meter, require_room


def _jobs_of(holder: Holder) -> QuerySet[Job]:
    mine = {"project_id": holder.id} if holder.kind == "project" else {"created_by_id": holder.id}
    return Job.objects.filter(**mine)


def queued(holder: Holder) -> int:
    """Jobs that wait, for a worker or for the job before them."""
    return _jobs_of(holder).filter(state__in=(State.WAITING, State.QUEUED)).count()


def running(holder: Holder) -> int:
    """Jobs a worker has."""
    return _jobs_of(holder).filter(state__in=LEASED).count()


def compute_seconds(holder: Holder) -> int:
    """Seconds from start to end (or now) of the last attempts, within the last 30 days."""
    now = clock.now()
    since = now - timedelta(days=COMPUTE_DAYS)
    worked = ExpressionWrapper(
        Coalesce(F("finished_at"), Value(now)) - Greatest(F("started_at"), Value(since)),
        output_field=DurationField(),
    )
    rows = _jobs_of(holder).filter(
        Q(finished_at__gt=since) | Q(finished_at=None, state__in=LEASED), started_at__isnull=False
    )
    total = rows.aggregate(n=Sum(worked))["n"]
    return int(total.total_seconds()) if total is not None else 0


def require_room_for_job(project_id: UUID, actor: Any, jobs: int = 1) -> None:
    """Let so many more jobs be queued, or refuse. In the transaction that queues them.

    Raises:
        QuotaExceeded: too many wait, or storage or compute is used up.
    """
    lock_holders(project_id, actor.pk)
    for resource, asked in (("queued_jobs", jobs), ("storage_bytes", 0), ("compute_seconds", 0)):
        require_room(resource, project_id=project_id, user_id=actor.pk, asked=asked)


def may_run(job_id: UUID, *, lock: bool = False) -> bool:
    """Whether a worker may take the job now; else it waits until another of its project or person has ended.

    Args:
        lock: until the end of the transaction, let no other worker count on the same place.
    """
    row = Job.objects.filter(pk=job_id).values_list("project_id", "created_by_id").first()
    if row is not None and lock:
        lock_holders(*row)
    return row is not None and excess("running_jobs", project_id=row[0], user_id=row[1]) is None


def register() -> None:
    """Let quotas measure it."""
    register_meter("queued_jobs", queued)
    register_meter("running_jobs", running)
    register_meter("compute_seconds", compute_seconds)
