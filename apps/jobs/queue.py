"""The order of the queue: who is next, and when that will probably be.

Higher priority goes first. At the same priority people take turns: first whoever has the fewest jobs
being worked on, then the project with the fewest, then whoever was served longest ago. So a hundred jobs
of one person hold a colleague's up by one job, not by a hundred.
"""

from __future__ import annotations

import heapq
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.conf import settings
from django.db.models import Max

from apps.core import clock
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import LEASED, State

MAX_QUEUE = 5000
HISTORY = 200


class Queued(NamedTuple):
    """What decides about the turn of a job."""

    id: UUID
    priority: int
    user: Any
    project: UUID
    queued_at: datetime


class Outlook(NamedTuple):
    """What is known about a job that has not started.

    ``position`` counts from 1 and is 0 for a job that waits for another one; ``starts_in`` and ``lasts``
    are seconds, or None where no earlier job tells.
    """

    position: int
    starts_in: float | None
    lasts: float | None


def order(
    queued: Iterable[Queued],
    *,
    users: Mapping[Any, int] | None = None,
    projects: Mapping[UUID, int] | None = None,
    served: Mapping[Any, datetime] | None = None,
) -> list[Queued]:
    """The jobs in the order of their turns.

    Args:
        users: how many jobs of each user are being worked on.
        projects: the same of each project.
        served: when a job of each user was started last.
    """
    of_user, of_project = Counter(users or {}), Counter(projects or {})
    lines: dict[tuple[Any, UUID], list[Queued]] = defaultdict(list)
    for job in sorted(queued, key=lambda job: (-job.priority, job.queued_at, job.id), reverse=True):
        lines[job.user, job.project].append(job)  # the next of a line is its last
    sequence: list[Queued] = []

    def key(line: list[Queued]) -> tuple[Any, ...]:
        head = line[-1]
        last = (served or {}).get(head.user)
        since = last.timestamp() if last is not None else -math.inf
        load = (of_user[head.user], of_project[head.project])
        return (-head.priority, *load, since, head.queued_at, head.id)

    while lines:
        name = min(lines, key=lambda name: key(lines[name]))
        job = lines[name].pop()
        if not lines[name]:
            del lines[name]
        sequence.append(job)
        of_user[job.user] += 1
        of_project[job.project] += 1
    return sequence


def turns(running: Sequence[Job] | None = None) -> list[Job]:
    """The queue as it is now, whose turn it is first.

    Args:
        running: the jobs being worked on, if they have been read already.
    """
    rows = Job.objects.filter(state=State.QUEUED).order_by("-priority", "queued_at")[:MAX_QUEUE]
    columns = ("kind", "params", "priority", "created_by_id", "project_id", "queued_at", "state")
    queued = {job.pk: job for job in rows.only(*columns)}
    if not queued:
        return []
    if running is None:
        running = list(Job.objects.filter(state__in=LEASED).only("created_by_id", "project_id"))
    served = (
        Job.objects.filter(created_by__in={job.created_by_id for job in queued.values() if job.created_by_id})
        .filter(started_at__isnull=False)
        .order_by()
        .values_list("created_by_id")
        .annotate(last=Max("started_at"))
    )
    sequence = order(
        (
            Queued(job.pk, job.priority, job.created_by_id, job.project_id, job.queued_at)
            for job in queued.values()
        ),
        users=Counter(job.created_by_id for job in running),
        projects=Counter(job.project_id for job in running),
        served=dict(served),
    )
    return [queued[turn.id] for turn in sequence]


# --- estimates --------------------------------------------------------------------------------------------


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


def add_outlooks(rows: Sequence[Job]) -> None:
    """Set ``outlook`` on the jobs that have not started, in a number of queries that does not depend on them."""
    waiting = [row for row in rows if row.state in (State.WAITING, State.QUEUED)]
    if not waiting:
        return
    running = list(Job.objects.filter(state__in=LEASED))
    whole = turns(running) if any(row.state == State.QUEUED for row in waiting) else []
    paces = Paces({job.kind for job in (*whole, *running, *waiting)})
    starts = _starts(whole, running, paces)
    places = {job.pk: number for number, job in enumerate(whole, 1)}
    for row in waiting:
        starts_in = starts.get(row.pk, math.inf) if row.state == State.QUEUED else math.inf
        row.outlook = Outlook(  # type: ignore[attr-defined]
            places.get(row.pk, 0),
            starts_in if math.isfinite(starts_in) else None,
            paces.lasts(row.kind, row.params),
        )


def _starts(queued: Sequence[Job], running: Sequence[Job], paces: Paces) -> dict[UUID, float]:
    """When each queued job starts if the workers of now do them in this order."""
    workers = WorkerNode.objects.alive(settings.WORKBENCH_LEASE_SECONDS).count() if queued else 0
    if not workers:
        return {}
    free = [remaining(job, paces) for job in running]
    free += [0.0] * (workers - len(free))
    heapq.heapify(free)
    starts: dict[UUID, float] = {}
    for job in queued:
        start = heapq.heappop(free)
        starts[job.pk] = start
        lasts = paces.lasts(job.kind, job.params)
        heapq.heappush(free, math.inf if lasts is None else start + lasts)
    return starts
