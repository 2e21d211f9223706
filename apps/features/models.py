"""Analyses and features."""

from __future__ import annotations

from django.db import models
from django.db.models import Q

from apps.artifacts.models import Artifact
from apps.core.records import Record
from apps.features.querysets import AnalysisQuerySet, FeatureQuerySet
from apps.jobs.models import Job
from apps.saes.models import Sae

SEPARATOR = "\x1f"  # joins tokens in one searchable text; no tokenizer has it as part of a word


class Analysis(Record):
    """One pass over a recording that described every feature of an SAE; a new one replaces it."""

    sae = models.OneToOneField(Sae, on_delete=models.CASCADE, related_name="analysis")
    job = models.OneToOneField(Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="analysis")
    artifact = models.OneToOneField(Artifact, on_delete=models.PROTECT, related_name="analysis")
    n_features = models.PositiveIntegerField()
    dead = models.PositiveIntegerField()
    tokens = models.BigIntegerField()
    manifest = models.JSONField(default=dict)

    objects = AnalysisQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        verbose_name_plural = "analyses"

    def __str__(self) -> str:
        return f"Analysis of {self.sae}"


class Feature(Record):
    """One latent of an SAE. Numbers and top tokens are here; examples are read from the analysis' file.

    Ids, labels and stars outlive a new analysis of the same SAE.
    """

    EDITED = ("label", "starred")

    sae = models.ForeignKey(Sae, on_delete=models.CASCADE, related_name="features", db_index=False)
    index = models.PositiveIntegerField()
    density = models.FloatField()
    firings = models.BigIntegerField()
    max_activation = models.FloatField()
    mean_activation = models.FloatField()
    p999 = models.FloatField()
    dead = models.BooleanField()
    top_tokens_text = models.TextField(blank=True)
    promoted_text = models.TextField(blank=True)
    suppressed_text = models.TextField(blank=True)
    label = models.CharField(max_length=200, blank=True)
    starred = models.BooleanField(default=False)
    detail_offset = models.BigIntegerField()
    detail_length = models.PositiveIntegerField()

    objects = FeatureQuerySet.as_manager()

    class Meta:
        ordering = ("sae", "index")
        constraints = (models.UniqueConstraint(fields=("sae", "index"), name="feature_unique"),)
        indexes = (
            # Each serves a sort in both directions, ties included. What lists filter by stands behind that, so that
            # counting needs no row at all and a page only its own rows.
            models.Index(fields=("sae", "density", "index", "dead"), name="feature_by_density"),
            models.Index(fields=("sae", "max_activation", "index", "dead", "density"), name="feature_by_max"),
            models.Index(fields=("sae", "p999", "index", "dead", "density"), name="feature_by_p999"),
            models.Index(fields=("sae", "index"), name="feature_starred", condition=Q(starred=True)),
        )

    def __str__(self) -> str:
        return f"{self.index} {self.label}".strip()
