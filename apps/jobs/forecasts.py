"""When jobs that have not started will probably start, and how long they will take.

A forecast plays the whole queue through. It is made when somebody asks for it by :func:`forecast`, and used
again while the queue stays as it is.
"""

from __future__ import annotations

import heapq
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import Count, Max, Q, Sum

from apps.core import clock
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job, WorkerNode
from apps.jobs.queue import MAX_QUEUE, in_turn
from apps.jobs.states import ACTIVE, LEASED, State

HISTORY = 200
# Running jobs get on while the queue stays the same: so old may a forecast become.
KEPT_SECONDS = 5.0
NOT_STARTED = (State.WAITING, State.QUEUED)


class Forecast(NamedTuple):
    """What is known about a job that has not started.

    ``position`` counts from 1 and is 0 for a job that waits for another one; ``starts_in`` and ``lasts``
    are seconds, or None where no earlier job tells.
    """

    position: int
    starts_in: float | None
    lasts: float | None


UNKNOWN = Forecast(0, None, None)


class _Kept(NamedTuple):
    queue: tuple[Any, ...]
    made: float
    forecasts: dict[UUID, Forecast]


_kept: _Kept | None = None


def forecast(jobs: Iterable[Job]) -> dict[UUID, Forecast]:
    """Forecasts of those of the jobs that have not started, by id; at most one play of the queue for all."""
    asked = [job.pk for job in jobs if job.state in NOT_STARTED]
    if not asked:
        return {}
    known = _whole_queue()
    return {pk: known[pk] for pk in asked if pk in known}


def _whole_queue() -> dict[UUID, Forecast]:
    """The kept forecasts, or new ones when the queue has changed or they are old."""
    global _kept
    workers = WorkerNode.objects.alive(settings.WORKBENCH_LEASE_SECONDS).count()
    waiting = Q(state__in=NOT_STARTED)
    now = Job.objects.filter(state__in=ACTIVE).aggregate(
        jobs=Count("pk", filter=waiting),
        changes=Sum("seq", filter=waiting),
        newest=Max("queued_at", filter=waiting),
        leased=Count("pk", filter=~waiting),
    )
    queue = (workers, *now.values())
    kept = _kept
    if kept is None or kept.queue != queue or time.monotonic() - kept.made > KEPT_SECONDS:
        _kept = kept = _Kept(queue, time.monotonic(), _play(workers))
    return kept.forecasts


def _play(workers: int) -> dict[UUID, Forecast]:
    """Let the workers of now do the queue in its order, each job as long as earlier ones took."""
    rows = Job.objects.filter(state__in=NOT_STARTED).order_by("-priority", "queued_at")
    queued = {pk: what for pk, *what in rows.values_list("pk", "kind", "params")[:MAX_QUEUE]}
    running = list(Job.objects.filter(state__in=LEASED))
    paces = Paces({kind for kind, _ in queued.values()} | {job.kind for job in running})
    lasts = {pk: paces.lasts(kind, params) for pk, (kind, params) in queued.items()}
    forecasts = {pk: Forecast(0, None, seconds) for pk, seconds in lasts.items()}
    order = [pk for pk in in_turn() if pk in lasts]
    starts = _starts([lasts[pk] for pk in order], [remaining(job, paces) for job in running], workers)
    for position, (pk, start) in enumerate(zip(order, starts, strict=True), 1):
        forecasts[pk] = Forecast(position, start if math.isfinite(start) else None, lasts[pk])
    return forecasts


def _starts(durations: Sequence[float | None], busy: Sequence[float], workers: int) -> list[float]:
    """Seconds until each job starts, ``inf`` when nothing tells.

    Args:
        durations: seconds each takes, in the order of their turns.
        busy: seconds until each running job ends.
    """
    if not workers:
        return [math.inf] * len(durations)
    free = [*busy, *[0.0] * (workers - len(busy))]
    heapq.heapify(free)
    starts = []
    for seconds in durations:
        starts.append(free[0])
        heapq.heapreplace(free, math.inf if seconds is None else free[0] + seconds)
    return starts


class Paces:
    """Seconds per unit of work of each kind, from the newest jobs that succeeded at once."""

    def __init__(self, kinds: Iterable[str]) -> None:
        taken: dict[str, list[float]] = defaultdict(list)
        rows = Job.objects.filter(
            kind__in=set(kinds), state=State.SUCCEEDED, attempt=1, started_at__isnull=False
        )
        columns = ("kind", "params", "started_at", "finished_at")
        for kind, params, started, finished in rows.order_by("-finished_at").values_list(*columns)[:HISTORY]:
            taken[kind].append((finished - started).total_seconds() / work(kind, params))
        self._paces = {kind: statistics.median(values) for kind, values in taken.items()}

    def lasts(self, kind: str, params: Mapping[str, Any]) -> float | None:
        """How many seconds such a job takes."""
        pace = self._paces.get(kind)
        return None if pace is None else pace * work(kind, params)


def work(kind: str, params: Mapping[str, Any]) -> float:
    """How much work a job is, in a unit of its kind; never 0."""
    try:
        return max(float(get_kind(kind).work(params)), 1e-9)
    except (KeyError, TypeError, ValueError):
        return 1.0  # parameters of an earlier version


def remaining(job: Job, paces: Paces) -> float:
    """Seconds until a running job ends, ``inf`` when nothing tells."""
    if job.total and job.rate and job.rate > 0:
        return max(0.0, (job.total - job.done) / job.rate)
    lasts = paces.lasts(job.kind, job.params)
    if lasts is None or job.started_at is None:
        return math.inf
    return max(0.0, lasts - (clock.lately() - job.started_at).total_seconds())
