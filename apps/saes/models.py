"""SAEs and evaluations."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from apps.artifacts.models import Artifact
from apps.core.records import Record
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.registry.models import JobResult, LanguageModel, Recording
from apps.saes.querysets import EvaluationQuerySet, SaeQuerySet


class Sae(JobResult):
    """A sparse autoencoder of one site of a model: trained on a recording, or imported.

    An imported one has no recording until it is measured on one. ``summary`` holds its smoke test then.
    ``fingerprint`` is the hash of its weights and configuration: edits name an SAE by it.
    """

    EDITED = ("name",)

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="saes")
    model = models.ForeignKey(LanguageModel, on_delete=models.PROTECT, related_name="saes")
    recording = models.ForeignKey(
        Recording, null=True, blank=True, on_delete=models.PROTECT, related_name="saes"
    )
    name = models.CharField(max_length=120)
    architecture = models.CharField(max_length=40)
    layer = models.PositiveIntegerField()
    site = models.CharField(max_length=20)
    width = models.PositiveIntegerField()
    k = models.PositiveIntegerField(null=True, blank=True)
    params = models.JSONField(default=dict)
    summary = models.JSONField(default=dict)
    fingerprint = models.CharField(max_length=80, blank=True, db_index=True)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="sae"
    )

    objects = SaeQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name = "SAE"
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="sae_name_unique"),
            models.CheckConstraint(
                condition=~Q(state="ready") | (Q(artifact__isnull=False) & ~Q(fingerprint="")),
                name="sae_ready_has_files",
            ),
        )

    def __str__(self) -> str:
        return self.name


class Evaluation(Record):
    """Measurements of an SAE on held-out text, with the goals they are held against."""

    sae = models.ForeignKey(Sae, on_delete=models.CASCADE, related_name="evaluations")
    job = models.OneToOneField(
        Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="evaluation"
    )
    metrics = models.JSONField(default=dict)
    goals = models.JSONField(default=list)
    details = models.JSONField(default=dict)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="evaluation"
    )

    objects = EvaluationQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"Evaluation of {self.sae}"
