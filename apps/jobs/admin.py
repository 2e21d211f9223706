"""The control room: jobs with live numbers and actions, and the workers that do them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import admin, messages
from django.db.models import Count, Q, QuerySet
from django.http import HttpRequest
from django.utils.timesince import timesince

from apps.core import clock
from apps.core.admin import ReadOnlyAdmin, ReadOnlyInline, RecordAdmin
from apps.core.errors import MicroscopeError
from apps.jobs import services
from apps.jobs.models import Job, JobEvent, Pipeline, WorkerNode
from apps.jobs.states import LEASED, State

SHOWN_EVENTS = 50


class JobEventInline(ReadOnlyInline):
    """The newest events of a job."""

    model = JobEvent
    fields = ("seq", "at", "attempt", "kind", "level", "message", "data")
    readonly_fields = fields
    ordering = ("-seq",)
    verbose_name_plural = f"latest {SHOWN_EVENTS} events"

    def get_queryset(self, request: HttpRequest) -> QuerySet[JobEvent]:
        """Only the newest: a long job has thousands."""
        rows = super().get_queryset(request)
        match = request.resolver_match
        job_id = match.kwargs.get("object_id") if match is not None else None
        newest = rows.filter(job_id=job_id).order_by("-seq").values_list("pk", flat=True)[:SHOWN_EVENTS]
        return rows.filter(pk__in=list(newest))


@admin.register(Job)
class JobAdmin(RecordAdmin):
    """Every job of every project; nothing is edited by hand, actions go through the services."""

    list_display = (
        "title",
        "kind",
        "project",
        "state_shown",
        "progress",
        "speed",
        "attempts",
        "priority",
        "worker",
        "age",
        "created_by",
    )
    list_filter = (
        "state",
        "kind",
        ("worker", admin.RelatedOnlyFieldListFilter),
        ("project", admin.RelatedOnlyFieldListFilter),
    )
    list_select_related = ("project", "worker", "created_by")
    search_fields = ("id", "title", "subject_id", "error_code", "error_message")
    date_hierarchy = "created_at"
    actions = ("cancel_jobs", "retry_jobs", "mark_jobs_failed", "raise_priority", "lower_priority")
    inlines = (JobEventInline,)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """History stays."""
        return False

    @admin.display(description="state", ordering="state")
    def state_shown(self, job: Job) -> str:
        """The state; a worker that fell silent is named."""
        silent = (
            job.state in LEASED and job.lease_expires_at is not None and job.lease_expires_at < clock.lately()
        )
        return f"{job.state} (worker silent)" if silent else job.state

    @admin.display(description="progress")
    def progress(self, job: Job) -> str:
        """How far it is."""
        if not job.total:
            return job.phase
        return f"{job.phase} {100 * job.done / job.total:.0f} %"

    @admin.display(description="rate")
    def speed(self, job: Job) -> str:
        """Units per second while it runs."""
        return f"{job.rate:,.0f} {job.unit}/s" if job.rate and job.state == State.RUNNING else ""

    @admin.display(description="attempt", ordering="attempt")
    def attempts(self, job: Job) -> str:
        """Which attempt of how many."""
        return f"{job.attempt} / {job.max_attempts}"

    @admin.display(description="age", ordering="created_at")
    def age(self, job: Job) -> str:
        """How long ago it was submitted."""
        return timesince(job.created_at)

    @admin.action(description="Cancel")
    def cancel_jobs(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Ask the jobs to stop."""
        self._each(request, queryset, "cancelled", lambda job: services.cancel(actor=request.user, job=job))

    @admin.action(description="Try again")
    def retry_jobs(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Queue failed or cancelled jobs again."""
        self._each(request, queryset, "queued again", lambda job: services.retry(actor=request.user, job=job))

    @admin.action(description="Mark as failed")
    def mark_jobs_failed(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Give up on jobs whose worker will not come back."""
        self._each(
            request,
            queryset,
            "marked as failed",
            lambda job: services.mark_failed(actor=request.user, job=job),
        )

    @admin.action(description="Raise the priority by one")
    def raise_priority(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Let the jobs go before others."""
        self._shift(request, queryset, 1)

    @admin.action(description="Lower the priority by one")
    def lower_priority(self, request: HttpRequest, queryset: QuerySet[Job]) -> None:
        """Let the jobs go after others."""
        self._shift(request, queryset, -1)

    def _shift(self, request: HttpRequest, queryset: QuerySet[Job], by: int) -> None:
        self._each(
            request,
            queryset,
            "reprioritised",
            lambda job: services.set_priority(actor=request.user, job=job, priority=job.priority + by),
        )

    def _each(
        self, request: HttpRequest, queryset: QuerySet[Job], done: str, act: Callable[[Job], object]
    ) -> None:
        count = 0
        for job in queryset:
            try:
                act(job)
                count += 1
            except MicroscopeError as error:
                self.message_user(request, f"{job}: {error}", messages.WARNING)
        if count:
            self.message_user(request, f"{count} job{'' if count == 1 else 's'} {done}.", messages.SUCCESS)


class PipelineJobInline(ReadOnlyInline):
    """The jobs of a pipeline."""

    model = Job
    fields = ("title", "kind", "state", "phase", "error_message", "started_at", "finished_at")
    readonly_fields = fields
    ordering = ("pk",)
    show_change_link = True


@admin.register(Pipeline)
class PipelineAdmin(ReadOnlyAdmin):
    """Jobs submitted together."""

    list_display = ("name", "project", "created_by", "created_at")
    list_filter = (("project", admin.RelatedOnlyFieldListFilter),)
    list_select_related = ("project", "created_by")
    search_fields = ("id", "name")
    inlines = (PipelineJobInline,)


@admin.register(WorkerNode)
class WorkerNodeAdmin(RecordAdmin):
    """Compute workers, their last heartbeat, and what they do."""

    list_display = ("__str__", "alive_shown", "heartbeat_at", "busy_with", "started", "version")
    list_filter = ("host",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[WorkerNode]:
        """Workers with the number of jobs they hold."""
        rows: QuerySet[WorkerNode] = super().get_queryset(request)
        return rows.annotate(n_jobs=Count("jobs", filter=Q(jobs__state__in=LEASED)))

    @admin.display(description="alive", boolean=True)
    def alive_shown(self, node: WorkerNode) -> bool:
        """Whether it was heard of within a lease."""
        return node.alive

    @admin.display(description="jobs held", ordering="n_jobs")
    def busy_with(self, node: Any) -> int:
        """How many jobs it holds."""
        return int(node.n_jobs)

    @admin.display(description="started", ordering="created_at")
    def started(self, node: WorkerNode) -> str:
        """When it started."""
        return timesince(node.created_at)
