"""Patches and their versions."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.artifacts.models import Artifact
from apps.core.records import Record
from apps.patches.querysets import (
    AdapterQuerySet,
    CertificateQuerySet,
    ExportQuerySet,
    PatchQuerySet,
    PatchVersionQuerySet,
)
from apps.projects.models import Project
from apps.registry.models import JobResult, LanguageModel, Recording


class Patch(Record):
    """A plan of edits to a model, under a name. ``fingerprint`` says what it does, ``version`` counts changes."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="patches")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="patches")
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True, max_length=4000)
    plan = models.JSONField()
    enabled = models.BooleanField(default=True)
    version = models.PositiveIntegerField(default=1)
    fingerprint = models.CharField(max_length=64, blank=True)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )
    updated_at = models.DateTimeField(auto_now=True)

    objects = PatchQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "patches"
        constraints = (models.UniqueConstraint(fields=("project", "name"), name="patch_name_unique"),)

    def __str__(self) -> str:
        return self.name


class PatchVersion(Record):
    """A patch as it was after one change. Never changed itself."""

    patch = models.ForeignKey(Patch, on_delete=models.CASCADE, related_name="versions")
    version = models.PositiveIntegerField()
    name = models.CharField(max_length=120)
    description = models.TextField(blank=True)
    plan = models.JSONField()
    enabled = models.BooleanField()
    fingerprint = models.CharField(max_length=64, blank=True)
    change = models.CharField(max_length=40)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )

    objects = PatchVersionQuerySet.as_manager()

    class Meta:
        ordering = ("patch", "-version")
        constraints = (models.UniqueConstraint(fields=("patch", "version"), name="patch_version_unique"),)

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


class Adapter(JobResult):
    """A LoRA adapter that was brought in. Edits name it by ``fingerprint``; ``patch`` is the one made of it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="adapters")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="adapters")
    name = models.CharField(max_length=120)
    fingerprint = models.CharField(max_length=64, blank=True, db_index=True)
    summary = models.JSONField(default=dict)
    patch = models.ForeignKey(Patch, null=True, blank=True, on_delete=models.SET_NULL, related_name="+")
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="adapter"
    )

    objects = AdapterQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="adapter_name_unique"),
            models.CheckConstraint(
                condition=~Q(state="ready") | (Q(artifact__isnull=False) & ~Q(fingerprint="")),
                name="adapter_ready_has_files",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Gate(models.TextChoices):
    """Whether an export may leave: measured, and within its limits or let through by an owner."""

    UNCERTIFIED = "uncertified"
    PASSED = "passed"
    BLOCKED = "blocked"
    OVERRIDDEN = "overridden"


class Export(JobResult):
    """One version of a patch as files for one kind of program. Its files leave only through its gate."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="exports")
    patch = models.ForeignKey(Patch, on_delete=models.CASCADE, related_name="exports")
    patch_version = models.PositiveIntegerField()
    plan = models.JSONField()
    fingerprint = models.CharField(max_length=64)
    target = models.CharField(max_length=20)
    grade = models.CharField(max_length=12)
    params = models.JSONField(default=dict)
    manifest = models.JSONField(default=dict)
    recording = models.ForeignKey(
        Recording, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="export"
    )
    gate = models.CharField(max_length=11, choices=Gate.choices, default=Gate.UNCERTIFIED)
    override_reason = models.TextField(blank=True, max_length=2000)
    overridden_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )
    overridden_at = models.DateTimeField(null=True, blank=True)

    objects = ExportQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(
                condition=~Q(state="ready") | Q(artifact__isnull=False), name="export_ready_has_files"
            ),
            models.CheckConstraint(
                condition=~Q(gate="overridden") | ~Q(override_reason=""), name="export_override_has_reason"
            ),
        )

    def __str__(self) -> str:
        return f"{self.patch} v{self.patch_version} for {self.target}"


class Certificate(JobResult):
    """What was measured on an export's reloaded files. Never changed; a newer one replaces its verdict."""

    export = models.ForeignKey(Export, on_delete=models.CASCADE, related_name="certificates")
    passed = models.BooleanField(null=True)
    report = models.JSONField(default=dict)
    params = models.JSONField(default=dict)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="certificate"
    )

    objects = CertificateQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"Certificate of {self.export}"
