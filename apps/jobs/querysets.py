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
        """With the rows a summary shows: author and worker."""
        return self.select_related("created_by", "worker")


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
