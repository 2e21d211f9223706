"""The order of the queue: who is next.

Higher priority goes first. At the same priority people take turns: first the person with the fewest jobs
being worked on, then the project with the fewest, then the person who was served longest ago. So a hundred
jobs of one person hold a colleague's up by one job, not by a hundred.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Max

from apps.jobs.models import Job
from apps.jobs.states import LEASED, State

MAX_QUEUE = 5000


class Queued(NamedTuple):
    """What decides about the turn of a job."""

    id: UUID
    priority: int
    user: Any
    project: UUID
    queued_at: datetime


def fair_order(
    queued: Iterable[Queued],
    *,
    users: Mapping[Any, int] | None = None,
    projects: Mapping[UUID, int] | None = None,
    served: Mapping[Any, datetime] | None = None,
) -> Iterator[Queued]:
    """The jobs in the order of their turns; the first ones cost little when the rest is not asked for.

    Args:
        users: how many jobs of each user are being worked on.
        projects: the same of each project.
        served: when a job of each user was started last.
    """
    of_user, of_project = Counter(users or {}), Counter(projects or {})
    lines: dict[tuple[UUID, Any], list[Queued]] = defaultdict(list)
    for job in sorted(queued, key=lambda job: (-job.priority, job.queued_at, job.id), reverse=True):
        lines[job.project, job.user].append(job)  # the next of a line is its last

    def rank(line: list[Queued]) -> tuple[Any, ...]:
        job = line[-1]
        last = (served or {}).get(job.user)
        since = last.timestamp() if last is not None else -math.inf
        return (-job.priority, of_user[job.user], since, job.queued_at, job.id)

    # Per project a heap of its people. Ranks only grow, so one that is out of date is found at the top.
    heaps: dict[UUID, list[tuple[tuple[Any, ...], Any]]] = defaultdict(list)
    for (project, user), line in lines.items():
        heapq.heappush(heaps[project], (rank(line), user))

    def first(project: UUID) -> tuple[Any, ...]:
        heap = heaps[project]
        while (now := rank(lines[project, heap[0][1]])) != heap[0][0]:
            heapq.heapreplace(heap, (now, heap[0][1]))
        priority, load, *rest = now
        return (priority, load, of_project[project], *rest)

    while heaps:
        project = min(heaps, key=first)
        user = heaps[project][0][1]
        line = lines[project, user]
        job = line.pop()
        of_user[user] += 1
        of_project[project] += 1
        if line:
            heapq.heapreplace(heaps[project], (rank(line), user))
        else:
            heapq.heappop(heaps[project])
            if not heaps[project]:
                del heaps[project]
        yield job


def in_turn() -> Iterator[UUID]:
    """Ids of the queued jobs as things are now, the next one first."""
    rows = Job.objects.filter(state=State.QUEUED).order_by("-priority", "queued_at")
    columns = ("pk", "priority", "created_by_id", "project_id", "queued_at")
    queued = [Queued(*row) for row in rows.values_list(*columns)[:MAX_QUEUE]]
    if not queued:
        return
    leased = list(Job.objects.filter(state__in=LEASED).values_list("created_by_id", "project_id"))
    served = (
        Job.objects.filter(created_by__in={job.user for job in queued if job.user})
        .filter(started_at__isnull=False)
        .order_by()
        .values_list("created_by_id")
        .annotate(last=Max("started_at"))
    )
    turns = fair_order(
        queued,
        users=Counter(user for user, _ in leased),
        projects=Counter(project for _, project in leased),
        served=dict(served),
    )
    for job in turns:
        yield job.id
