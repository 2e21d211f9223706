"""Live sessions are counted by seats: rows that their socket renews, so that those of a dead web process run out."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.utils import timezone

from apps.live.models import LiveSeat
from apps.projects.quotas import Holder, register_meter, require_room

LIFETIME = timedelta(seconds=100)  # a little more than three looks at whether the socket may stay


def seats(holder: Holder) -> int:
    """Live sessions that are open now."""
    mine = {"project_id": holder.id} if holder.kind == "project" else {"user_id": holder.id}
    return LiveSeat.objects.filter(expires_at__gt=timezone.now(), **mine).count()


@transaction.atomic
def take_seat(*, user: Any, project_id: UUID) -> LiveSeat:
    """Count one more session.

    Raises:
        QuotaExceeded: all are taken.
    """
    now = timezone.now()
    LiveSeat.objects.filter(expires_at__lt=now).delete()
    require_room("live_sessions", project_id=project_id, user_id=user.pk)
    return LiveSeat.objects.create(user=user, project_id=project_id, expires_at=now + LIFETIME)


def keep_seat(seat_id: UUID) -> None:
    """The session still lives."""
    LiveSeat.objects.filter(pk=seat_id).update(expires_at=timezone.now() + LIFETIME)


def leave_seat(seat_id: UUID) -> None:
    """The session is over."""
    LiveSeat.objects.filter(pk=seat_id).delete()


def register() -> None:
    """Let quotas measure it."""
    register_meter("live_sessions", seats)
