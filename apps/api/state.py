"""The state of the whole installation in a few queries: for ``/metrics``, the administration and the doctor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from django.apps import apps as registry
from django.conf import settings
from django.db.models import Count, Min, Sum

from apps.artifacts.models import Artifact
from apps.core import clock
from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import State
from apps.notifications.models import Delivery


class DiskSpace(NamedTuple):
    """Bytes of the disk the data folder is on."""

    total: int
    free: int


class Installation(NamedTuple):
    """A moment of everything. Ages are seconds, sizes bytes."""

    jobs: dict[str, int]
    oldest_queued: float
    workers: int
    silent_workers: int
    residents: dict[str, int]
    resident_bytes: int
    storage: list[tuple[str, int]]
    deliveries: int
    disk: DiskSpace


def disk_space(path: Path) -> DiskSpace:
    """Of the disk a folder is on, or will be on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return DiskSpace(usage.total, usage.free)


def look() -> Installation:
    """How things are now."""
    now = clock.now()
    jobs: dict[str, int] = dict.fromkeys(State.values, 0)
    jobs |= dict(Job.objects.order_by().values_list("state").annotate(n=Count("*")))
    oldest = Job.objects.filter(state=State.QUEUED).aggregate(oldest=Min("queued_at"))["oldest"]
    working = WorkerNode.objects.filter(stopped_at=None).count()
    alive = WorkerNode.objects.alive(settings.WORKBENCH_LEASE_SECONDS).count()
    resident_rows = registry.get_model(
        "live", "ResidentWorker"
    )._default_manager  # api and live know not of each other
    residents = dict(resident_rows.order_by().values_list("state").annotate(n=Count("*")))
    memory = resident_rows.filter(state="ready")
    storage = (
        Artifact.objects.order_by().values_list("project__name").annotate(n=Sum("bytes")).order_by("-n")[:20]
    )
    return Installation(
        jobs=jobs,
        oldest_queued=(now - oldest).total_seconds() if oldest is not None else 0.0,
        workers=alive,
        silent_workers=working - alive,
        residents=residents,
        resident_bytes=memory.aggregate(n=Sum("memory_bytes"))["n"] or 0,
        storage=[(name or "–", size or 0) for name, size in storage],
        deliveries=Delivery.objects.filter(state="pending").count(),
        disk=disk_space(Path(settings.WORKBENCH_DATA_DIR)),
    )
