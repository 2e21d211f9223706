"""Live sessions are counted by seats: rows that the web process with their sockets keeps from running out.

A process that is killed renews nothing, so its seats stop counting within seconds. A page does not even wait for that:
it names itself when it connects, and takes over the seat it had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import structlog
from channels.db import database_sync_to_async
from django.db import transaction

from apps.core import clock
from apps.live.models import LiveSeat
from apps.projects.quotas import Holder, lock_holders, register_meter, require_room

log = structlog.get_logger(__name__)

RENEW_SECONDS = 4.0
LIFETIME = timedelta(seconds=3 * RENEW_SECONDS)  # two renewals may fail
# Rows stay for a while after they ran out: a process that was only held up renews them and nobody notices.
FORGOTTEN = timedelta(minutes=10)
AT_ONCE = 500  # ids in one statement


def seats(holder: Holder) -> int:
    """Live sessions that are open now."""
    mine = {"project_id": holder.id} if holder.kind == "project" else {"user_id": holder.id}
    return LiveSeat.objects.filter(expires_at__gt=clock.now(), **mine).count()


@transaction.atomic
def take_seat(*, user: Any, project_id: UUID, page: UUID | None = None) -> LiveSeat:
    """Count one more session.

    Args:
        page: who asks; a seat the same page of the same person has already becomes this one, whose socket then loses
            its own.

    Raises:
        QuotaExceeded: all are taken.
    """
    lock_holders(project_id, user.pk)
    now = clock.now()
    LiveSeat.objects.filter(expires_at__lt=now - FORGOTTEN).delete()
    if page is not None:
        LiveSeat.objects.filter(user=user, page=page).delete()
    require_room("live_sessions", project_id=project_id, user_id=user.pk)
    return LiveSeat.objects.create(user=user, project_id=project_id, page=page, expires_at=now + LIFETIME)


def keep_seats(ids: Sequence[UUID]) -> set[UUID]:
    """These sessions still live; returns those whose seat is gone."""
    gone: set[UUID] = set()
    for first in range(0, len(ids), AT_ONCE):
        some = ids[first : first + AT_ONCE]
        rows = LiveSeat.objects.filter(pk__in=some)
        if rows.update(expires_at=clock.now() + LIFETIME) < len(some):
            gone |= set(some) - set(rows.values_list("pk", flat=True))
    return gone


def leave_seat(seat_id: UUID) -> None:
    """The session is over."""
    LiveSeat.objects.filter(pk=seat_id).delete()


class SeatRenewer:
    """Renews the seats of all sockets of a process, with one statement every few seconds."""

    def __init__(self) -> None:
        self._lost: dict[UUID, Callable[[], object]] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def held(self) -> frozenset[UUID]:
        """The seats it renews."""
        return frozenset(self._lost)

    def hold(self, seat: UUID, lost: Callable[[], object]) -> None:
        """Renew the seat until it is released; ``lost`` is called, once, when another socket has taken it over."""
        self._lost[seat] = lost
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._renew())

    def release(self, seat: UUID) -> None:
        """Renew it no more."""
        self._lost.pop(seat, None)

    async def _renew(self) -> None:
        while self._lost:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                gone = await database_sync_to_async(keep_seats)(list(self._lost))
            except Exception as error:  # whatever the database raises: it is tried again before they run out
                log.warning("seats_not_renewed", seats=len(self._lost), error=str(error))
                continue
            for seat in gone:
                lost = self._lost.pop(seat, None)
                if lost is not None:
                    lost()


renewer = SeatRenewer()


def register() -> None:
    """Let quotas measure it."""
    register_meter("live_sessions", seats)
