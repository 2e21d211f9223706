"""Turning a child's stream of events into few database writes and few messages."""

from __future__ import annotations

import time
from uuid import UUID

import msgspec
import structlog
from django.db import OperationalError

from apps.jobs import leases
from apps.jobs.announce import publish_summary
from apps.jobs.leases import NewEvent
from apps.jobs.models import Job
from apps.jobs.summary import summarise
from microscope.params import JobEvent

log = structlog.get_logger(__name__)

STORE_SECONDS = 1.0
PUBLISH_SECONDS = 0.25
MAX_POINTS = 1000
MAX_LOG_LINES = 1000


class Reporter:
    """Stores progress at most once a second and publishes it at most four times.

    Curves are kept within :data:`MAX_POINTS` by dropping every second point and halving the pace.
    """

    def __init__(self, job: Job, token: UUID) -> None:
        self._job, self._token = job, token
        self._progress: JobEvent | None = None
        # Progress the database has not seen, and progress nobody has seen.
        self._unstored = self._unpublished = False
        self._metrics: dict[str, float] = {}
        self._events: list[NewEvent] = []
        self._stored = self._published = self._pointed = 0.0
        self._new_metrics = False
        self._pace = STORE_SECONDS
        self._points = job.events.filter(kind="metrics").count()
        self._lines = job.events.filter(kind="log").count()
        self.result: dict[str, object] | None = None
        self.error: JobEvent | None = None

    def take(self, event: JobEvent) -> None:
        """Note one event of the child."""
        match event.type:
            case "progress":
                if self._progress is None or self._progress.phase != event.phase:
                    self._metrics = {}
                self._new_metrics |= bool(event.metrics)
                self._metrics = {**self._metrics, **event.metrics}
                self._progress = msgspec.structs.replace(event, metrics=self._metrics)
                self._unstored = self._unpublished = True
            case "log":
                self._log(event.message, event.level)
            case "checkpoint":
                data = {"done": event.done, "total": event.total, "unit": event.unit}
                self._events.append(NewEvent(kind="checkpoint", data=data))
            case "result":
                self.result = event.result
            case "error":
                self.error = event

    def note(self, message: str, level: str = "info") -> None:
        """Add a line of the supervisor's own to the history."""
        self._log(message, level)

    def tick(self, *, force: bool = False) -> None:
        """Store or publish what is due.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        now = time.monotonic()
        if (self._unstored or self._events) and (force or now - self._stored >= STORE_SECONDS):
            self._store(now)
        elif self._unpublished and now - self._published >= PUBLISH_SECONDS:
            self._publish(now)

    def _store(self, now: float) -> None:
        point = self._point(now)
        events = [*self._events, *point]
        try:
            self._job = leases.report(
                job_id=self._job.pk, token=self._token, progress=self._progress, events=events
            )
        except OperationalError as error:
            # A database that is busy for long costs a late curve, not the job.
            log.warning("progress_not_stored", job=str(self._job.pk), error=str(error))
            self._stored = now
            return
        self._events, self._unstored, self._unpublished = [], False, False
        self._stored = self._published = now
        if point:
            self._new_metrics, self._pointed = False, now
            self._points += 1
            if self._points >= MAX_POINTS:
                self._points = leases.thin_metrics(self._job.pk)
                self._pace *= 2

    def _point(self, now: float) -> list[NewEvent]:
        progress = self._progress
        if progress is None or not self._new_metrics or now - self._pointed < self._pace:
            return []
        data = {
            "phase": progress.phase,
            "done": progress.done,
            "rate": progress.rate,
            "metrics": progress.metrics,
        }
        return [NewEvent(kind="metrics", data=data)]

    def _publish(self, now: float) -> None:
        assert self._progress is not None
        job, progress = self._job, self._progress
        job.phase, job.done, job.total = progress.phase, progress.done, progress.total
        job.unit, job.rate, job.metrics = progress.unit, progress.rate, progress.metrics
        publish_summary(summarise(job), transient=True)
        self._unpublished, self._published = False, now

    def _log(self, message: str, level: str) -> None:
        self._lines += 1
        if self._lines < MAX_LOG_LINES:
            self._events.append(NewEvent(kind="log", message=message[:4000], level=level))
        elif self._lines == MAX_LOG_LINES:
            note = f"More than {MAX_LOG_LINES} lines; the rest is in the job's folder only."
            self._events.append(NewEvent(kind="log", message=note, level="warning"))
