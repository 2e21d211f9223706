"""One clock for all hosts: the database's.

A worker, a web process and a model host may each be minutes off. What one of them writes and another judges (leases,
heartbeats, times of expiry, what is due) is therefore written and judged by the time of the database they share.
With SQLite they are processes of one machine, whose clock is the database's.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

from django.db import connection
from django.utils import timezone

_KEPT_SECONDS = 5.0


def now() -> datetime:
    """The time of the database, asked now."""
    if connection.vendor != "postgresql":
        return timezone.now()
    with connection.cursor() as cursor:
        # Not now(), which stands still until the end of a transaction.
        cursor.execute("SELECT clock_timestamp()")
        found: datetime = cursor.fetchone()[0]
    return found.astimezone(UTC)


class _Kept:
    """The last answer, carried on by a clock that nobody sets."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked = -_KEPT_SECONDS
        self.answer = datetime.min.replace(tzinfo=UTC)


_kept = _Kept()


def lately() -> datetime:
    """The time of the database as far as lists need it: asked once for many rows."""
    if connection.vendor != "postgresql":
        return timezone.now()
    with _kept.lock:
        moment = time.monotonic()
        if moment - _kept.asked >= _KEPT_SECONDS:
            _kept.answer, _kept.asked = now(), moment
        return _kept.answer + timedelta(seconds=moment - _kept.asked)
