"""Jobs a user may see, and jobs workers and reapers look for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Self
from uuid import UUID

from django.db import models

from apps.core import clock
from apps.jobs.states import ACTIVE, LEASED
from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.jobs.models import Job, JobEvent, Pipeline, WorkerNode  # noqa: F401


class JobQuerySet(InProject["Job"]):
    """Jobs of projects."""

    _with_outlook = False

    def active(self) -> Self:
        """Waiting, queued or being worked on."""
        return self.filter(state__in=ACTIVE)

    def about(self, subject_id: UUID) -> Self:
        """Jobs about one object."""
        return self.filter(subject_id=subject_id)

    def expired(self, now: datetime) -> Self:
        """Leased jobs whose worker has fallen silent."""
        return self.filter(state__in=LEASED, lease_expires_at__lt=now)

    def for_display(self) -> Self:
        """Adds what a list shows: author, worker, and the ``outlook`` of jobs that have not started."""
        rows = self.select_related("created_by", "worker")
        rows._with_outlook = True
        return rows

    def _clone(self) -> Self:
        clone: Self = super()._clone()  # type: ignore[misc]
        clone._with_outlook = self._with_outlook
        return clone

    def _fetch_all(self) -> None:
        fresh = self._result_cache is None
        super()._fetch_all()
        if fresh and self._with_outlook:
            # The order of the queue depends on all of it, so it is worked out once for the whole list.
            from apps.jobs.queue import add_outlooks

            add_outlooks([row for row in self._result_cache or () if isinstance(row, self.model)])


class PipelineQuerySet(InProject["Pipeline"]):
    """Pipelines of projects."""

    def for_display(self) -> Self:
        """With their jobs, in the order they run."""
        from apps.jobs.models import Job

        jobs = Job.objects.for_display().order_by("pk")
        return self.select_related("created_by").prefetch_related(models.Prefetch("jobs", queryset=jobs))


class JobEventQuerySet(InProject["JobEvent"]):
    """Events of jobs."""

    project_path = "job__project"


class WorkerNodeQuerySet(models.QuerySet["WorkerNode"]):
    """Compute workers."""

    def alive(self, seconds: float) -> Self:
        """Workers heard of within so many seconds."""
        return self.filter(stopped_at=None, heartbeat_at__gt=clock.now() - timedelta(seconds=seconds))
