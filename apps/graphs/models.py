"""Provenance graphs and what people say about them."""

from __future__ import annotations

from django.conf import settings
from django.db import models
from django.db.models import Q

from apps.artifacts.models import Artifact
from apps.core.records import Record
from apps.graphs.querysets import GraphCommentQuerySet, GraphQuerySet
from apps.projects.models import Project
from apps.registry.models import JobResult, LanguageModel


class Graph(JobResult):
    """One graph: computed by a job, kept from a live session, or brought in as a file.

    The document itself is the artifact's one file; what a list shows is repeated here. ``target`` is a
    :class:`microscope.graphs.GraphTarget`, ``saes`` are the fingerprints of the SAEs whose latents are nodes. One
    that was brought in may be of no model of the project. ``view`` is what people have arranged on its page: pins,
    groups, sliders.
    """

    class Source(models.TextChoices):
        """How it came here."""

        JOB = "job"
        LIVE = "live"
        FILE = "file"

    EDITED = ("name", "note", "view")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="graphs")
    model = models.ForeignKey(
        LanguageModel, null=True, blank=True, on_delete=models.PROTECT, related_name="graphs"
    )
    name = models.CharField(max_length=120)
    note = models.TextField(blank=True, max_length=4000)
    source = models.CharField(max_length=4, choices=Source.choices)
    prompt = models.TextField(blank=True)
    target = models.JSONField(default=dict)
    saes = models.JSONField(default=list)
    depth = models.PositiveIntegerField(default=0)
    verified = models.PositiveIntegerField(default=0)
    nodes = models.PositiveIntegerField(default=0)
    edges = models.PositiveIntegerField(default=0)
    completeness = models.FloatField(null=True, blank=True)
    spearman = models.FloatField(null=True, blank=True)
    view = models.JSONField(default=dict)
    artifact = models.OneToOneField(
        Artifact, null=True, blank=True, on_delete=models.PROTECT, related_name="graph"
    )

    objects = GraphQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("project", "name"), name="graph_name_unique"),
            models.CheckConstraint(
                condition=~Q(state="ready") | Q(artifact__isnull=False), name="graph_ready_has_file"
            ),
        )

    def __str__(self) -> str:
        return self.name


class GraphComment(Record):
    """What somebody said about a graph."""

    graph = models.ForeignKey(Graph, on_delete=models.CASCADE, related_name="comments")
    text = models.TextField(max_length=4000)
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="+"
    )

    objects = GraphCommentQuerySet.as_manager()

    class Meta:
        ordering = ("id",)
        verbose_name = "comment"

    def __str__(self) -> str:
        return self.text[:60]
