"""How much a project and a person may use. The apps that own what is used register how it is measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.conf import settings

from apps.accounts.models import User
from apps.core.errors import Refused
from apps.projects.models import Project, Quota

COMPUTE_DAYS = 30


@dataclasses.dataclass(frozen=True)
class Resource:
    """Something that is limited.

    Args:
        status: of the refusal: 413 for what is too large, 429 for what is too much at once.
        remedy: what can be done about it.
    """

    name: str
    title: str
    unit: str
    status: int
    remedy: str


RESOURCES: dict[str, Resource] = {
    resource.name: resource
    for resource in (
        Resource(
            "storage_bytes", "Storage", "bytes", 413, "Delete recordings or SAEs that are no longer needed."
        ),
        Resource("queued_jobs", "Waiting jobs", "jobs", 429, "Wait until some have started, or cancel some."),
        Resource("running_jobs", "Running jobs", "jobs", 429, "It starts when another one has ended."),
        Resource(
            "compute_seconds",
            f"Compute in {COMPUTE_DAYS} days",
            "seconds",
            429,
            "Ask an administrator for more.",
        ),
        Resource(
            "live_sessions", "Live sessions", "sessions", 429, "Close another window with a live model."
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Holder:
    """Whose use is meant: a project's or a person's."""

    kind: str  # "project" or "user"
    id: UUID


Meter = Callable[[Holder], int]
_meters: dict[str, Meter] = {}


def register_meter(resource: str, meter: Meter) -> None:
    """Say how much of a resource a holder uses; done once, when the owning app starts."""
    if resource not in RESOURCES:
        raise ValueError(f"there is no resource {resource}")
    _meters[resource] = meter


class QuotaExceeded(Refused):
    """A request that would take more than is allowed; the answer says limit, used and asked."""

    def __init__(self, resource: Resource, holder: Holder, *, limit: int, used: int, asked: int) -> None:
        whose = "The project" if holder.kind == "project" else "You"
        verb = "has" if holder.kind == "project" else "have"
        super().__init__(
            f"quota_{resource.name}",
            f"{resource.title}: {whose} {verb} {used} of {limit} {resource.unit}; this asks for {asked} more.",
            f"{resource.remedy} Staff can raise the limit.",
            status=resource.status,
        )
        self.numbers = {
            "limit": limit,
            "used": used,
            "asked": asked,
            "unit": resource.unit,
            "of": holder.kind,
        }


def limits_of(holder: Holder) -> dict[str, int]:
    """Every limit; 0 means none."""
    limits = dict(settings.WORKBENCH_QUOTAS[holder.kind])
    own = Quota.objects.filter(**{f"{holder.kind}_id": holder.id}).first()
    for name in RESOURCES:
        value = getattr(own, name) if own is not None else None
        if value is not None:
            limits[name] = value
    return limits


def used_by(resource: str, holder: Holder) -> int:
    """How much is used now."""
    return int(_meters[resource](holder))


def holders(project_id: UUID | None, user_id: UUID | None) -> list[Holder]:
    """The project and the person whose limits a request must respect."""
    found = [Holder("project", project_id)] if project_id is not None else []
    return found + ([Holder("user", user_id)] if user_id is not None else [])


def lock_holders(project_id: UUID | None, user_id: UUID | None) -> None:
    """Make other requests that count against the same limits wait for the end of this transaction.

    Without it, two requests at the same moment would both find the last place free. Always in the same order, and
    before anything else is locked, so that nobody waits in a circle. SQLite has one writer at a time anyway.
    """
    for model, pk in ((Project, project_id), (User, user_id)):
        if pk is not None:
            list(model.objects.select_for_update(no_key=True).filter(pk=pk).values_list("pk"))


def excess(
    resource: str, *, project_id: UUID | None, user_id: UUID | None, asked: int = 1
) -> QuotaExceeded | None:
    """The refusal of so much more, or None when there is room.

    Args:
        asked: 0 asks whether the limit is reached already, for work whose size is not known before.
    """
    for holder in holders(project_id, user_id):
        limit = limits_of(holder)[resource]
        if not limit:
            continue
        used = used_by(resource, holder)
        if used + asked > limit or (asked == 0 and used >= limit):
            return QuotaExceeded(RESOURCES[resource], holder, limit=limit, used=used, asked=asked)
    return None


def require_room(resource: str, *, project_id: UUID | None, user_id: UUID | None, asked: int = 1) -> None:
    """Let so much more pass, or refuse.

    Raises:
        QuotaExceeded: 413 or 429, with the numbers.
    """
    refusal = excess(resource, project_id=project_id, user_id=user_id, asked=asked)
    if refusal is not None:
        raise refusal


def room_bytes(project_id: UUID | None, user_id: UUID | None) -> int:
    """Bytes that may still be stored, for work that stops when it becomes too much."""
    left = [
        limit - used_by("storage_bytes", holder)
        for holder in holders(project_id, user_id)
        if (limit := limits_of(holder)["storage_bytes"])
    ]
    return max(1, min(left, default=2**62))


def usage_of(holder: Holder) -> list[dict[str, Any]]:
    """Every resource with what the holder uses of it and may use (0: no limit)."""
    limits = limits_of(holder)
    return [
        {
            "resource": name,
            "title": resource.title,
            "unit": resource.unit,
            "used": used_by(name, holder),
            "limit": limits[name],
        }
        for name, resource in RESOURCES.items()
    ]


def usage(project_id: UUID, user: Any) -> list[dict[str, Any]]:
    """Every resource with what the project and the reader use of it, and their limits (0: none)."""
    of_project, of_reader = usage_of(Holder("project", project_id)), usage_of(Holder("user", user.pk))
    return [
        {**row, "own_used": own["used"], "own_limit": own["limit"]}
        for row, own in zip(of_project, of_reader, strict=True)
    ]
