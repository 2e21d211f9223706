"""Celery's beat, with a heartbeat."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from celery.beat import PersistentScheduler
from django.conf import settings

from apps.core import heartbeat


class Scheduler(PersistentScheduler):  # type: ignore[misc]
    """Shows with every look at the schedule that it still looks."""

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; returns the seconds until it should be called again."""
        seconds: float = super().tick(*args, **kwargs)
        with contextlib.suppress(OSError):  # on a full disk the schedule goes on
            heartbeat.beat(Path(settings.WORKBENCH_RUN_DIR), "beat")
        return seconds
