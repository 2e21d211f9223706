"""Jobs, chains of them, their events, and the workers that do them."""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.artifacts.models import Artifact
from apps.core import clock
from apps.core.records import Record
from apps.jobs.querysets import JobEventQuerySet, JobQuerySet, PipelineQuerySet, WorkerNodeQuerySet
from apps.jobs.states import ACTIVE, FINAL, LEASED, State
from apps.projects.models import Project


class WorkerNode(Record):
    """One run of a compute worker process. A restarted worker is a new row."""

    host = models.CharField(max_length=120)
    pid = models.PositiveIntegerField()
    process_started = models.FloatField(help_text="Start time of the process: tells a reused pid apart.")
    version = models.CharField(max_length=60, blank=True)
    heartbeat_at = models.DateTimeField(default=timezone.now, db_index=True)
    stopped_at = models.DateTimeField(null=True, blank=True)

    objects = WorkerNodeQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"

    @property
    def alive(self) -> bool:
        """Whether it was heard of lately."""
        patience = timedelta(seconds=settings.WORKBENCH_LEASE_SECONDS)
        return self.stopped_at is None and self.heartbeat_at > clock.lately() - patience


class Pipeline(Record):
    """Jobs submitted together, each of which waits for the one whose result it needs."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="pipelines")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="pipelines"
    )
    name = models.CharField(max_length=120)
    idempotency_key = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001 (null: not unique)

    objects = PipelineQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("created_by", "idempotency_key"), name="pipeline_idempotency_key_unique"
            ),
        )

    def __str__(self) -> str:
        return self.name


class Job(Record):
    """Something to be done by a worker. This row is the truth; messages about it may get lost.

    ``subject_type`` and ``subject_id`` name what the job is about (the SAE it trains, say); ``params``
    are the engine's parameters without paths, which are filled in when it starts. ``seq`` grows with
    every published change, so that a browser notices when it missed one.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="jobs")
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="jobs"
    )
    kind = models.CharField(max_length=40)
    title = models.CharField(max_length=200)
    subject_type = models.CharField(max_length=40)
    subject_id = models.UUIDField()
    params = models.JSONField(default=dict)
    pipeline = models.ForeignKey(
        Pipeline, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs"
    )
    after = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="followers",
        help_text="The job whose result this one needs.",
    )
    priority = models.SmallIntegerField(default=0, help_text="Higher goes first; set by administrators.")
    idempotency_key = models.CharField(max_length=200, null=True, blank=True)  # noqa: DJ001 (null: not unique)

    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED)
    attempt = models.PositiveSmallIntegerField(default=0, help_text="How often it was started.")
    max_attempts = models.PositiveSmallIntegerField(default=3)
    queued_at = models.DateTimeField(default=timezone.now)
    woken_at = models.DateTimeField(default=timezone.now, help_text="Last announcement to workers.")
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    cancel_asked_at = models.DateTimeField(null=True, blank=True)

    worker = models.ForeignKey(
        WorkerNode, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs"
    )
    lease_token = models.UUIDField(null=True, blank=True, editable=False)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)

    phase = models.CharField(max_length=60, blank=True)
    done = models.FloatField(default=0)
    total = models.FloatField(null=True, blank=True)
    unit = models.CharField(max_length=40, blank=True)
    rate = models.FloatField(null=True, blank=True)
    metrics = models.JSONField(default=dict)
    result = models.JSONField(default=dict)
    error_code = models.CharField(max_length=60, blank=True)
    error_message = models.TextField(blank=True)
    error_hint = models.TextField(blank=True)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.SET_NULL, related_name="job"
    )
    seq = models.PositiveIntegerField(default=1)
    event_seq = models.PositiveIntegerField(default=0)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(
                fields=("created_by", "kind", "idempotency_key"), name="job_idempotency_key_unique"
            ),
            models.CheckConstraint(condition=Q(state__in=State.values), name="job_state_known"),
            models.CheckConstraint(
                condition=Q(state__in=LEASED, lease_token__isnull=False, lease_expires_at__isnull=False)
                | (~Q(state__in=LEASED) & Q(lease_token__isnull=True, lease_expires_at__isnull=True)),
                name="job_leased_iff_token",
            ),
            models.CheckConstraint(
                condition=Q(state__in=FINAL, finished_at__isnull=False)
                | (~Q(state__in=FINAL) & Q(finished_at__isnull=True)),
                name="job_final_iff_finished",
            ),
            models.CheckConstraint(
                condition=~Q(state=State.WAITING) | Q(after__isnull=False), name="job_waits_for_something"
            ),
            models.CheckConstraint(
                condition=Q(attempt__lte=models.F("max_attempts")), name="job_attempts_within_limit"
            ),
        )
        indexes = (
            models.Index(fields=("project", "-id"), name="job_project"),
            models.Index(fields=("subject_id", "-id"), name="job_subject"),
            # Few jobs are ever active: the reaper and the queue look at this and nothing else.
            models.Index(fields=("state", "queued_at"), name="job_active", condition=Q(state__in=ACTIVE)),
            # Who was served last, and how long jobs of a kind took.
            models.Index(fields=("created_by", "-started_at"), name="job_served"),
            models.Index(fields=("kind", "state", "-finished_at"), name="job_history"),
        )

    def __str__(self) -> str:
        return self.title

    @property
    def is_final(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in FINAL


class JobEvent(models.Model):
    """One line of a job's history, numbered per job: a state, a log line, a point of its curves."""

    class Kind(models.TextChoices):
        """What happened."""

        STATE = "state"
        LOG = "log"
        METRICS = "metrics"
        CHECKPOINT = "checkpoint"

    class Level(models.TextChoices):
        """How bad it is."""

        INFO = "info"
        WARNING = "warning"
        ERROR = "error"

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    seq = models.PositiveIntegerField()
    at = models.DateTimeField(default=timezone.now)
    attempt = models.PositiveSmallIntegerField(default=0)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    level = models.CharField(max_length=7, choices=Level.choices, default=Level.INFO)
    message = models.TextField(blank=True)
    data = models.JSONField(default=dict)

    objects = JobEventQuerySet.as_manager()

    class Meta:
        ordering = ("job", "seq")
        constraints = (models.UniqueConstraint(fields=("job", "seq"), name="job_event_numbered"),)
        indexes = (models.Index(fields=("job", "kind", "seq"), name="job_event_kind"),)

    def __str__(self) -> str:
        return f"{self.kind} {self.message}".strip()
