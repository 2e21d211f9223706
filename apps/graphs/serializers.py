"""Graphs as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.core.etags import EtagField
from apps.core.structs import StructField, StructSerializer
from apps.core.views import VisibleField
from apps.graphs import models
from apps.jobs.serializers import JobSerializer
from apps.projects.models import Project
from apps.registry.models import LanguageModel
from apps.saes.models import Sae
from microscope.graphs import Graph, GraphTarget
from microscope.params.provenance import (
    DEFAULT_HOPS,
    DEFAULT_PARENTS,
    DEFAULT_SHOWN,
    MAX_HOPS,
    MAX_PARENTS,
    MAX_SHOWN,
)


class GraphRowSerializer(serializers.ModelSerializer[models.Graph]):
    """A graph in a list: its headline figures. ``saes`` are fingerprints; ``model`` is null for a foreign file."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    model = serializers.UUIDField(source="model_id", read_only=True, allow_null=True)
    model_name = serializers.CharField(source="model.name", read_only=True, default=None, allow_null=True)
    target = StructField(GraphTarget, read_only=True)
    saes = serializers.ListField(child=serializers.CharField(), read_only=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    error = serializers.SerializerMethodField(help_text="Why there is no graph, if its job failed.")
    comments = serializers.IntegerField(source="n_comments", read_only=True)
    created_by = serializers.CharField(
        source="created_by.username", read_only=True, default=None, allow_null=True
    )

    class Meta:
        model = models.Graph
        fields: tuple[str, ...] = (
            "id",
            "project",
            "model",
            "model_name",
            "name",
            "note",
            "source",
            "state",
            "error",
            "prompt",
            "target",
            "saes",
            "depth",
            "verified",
            "nodes",
            "edges",
            "completeness",
            "spearman",
            "artifact",
            "job",
            "comments",
            "created_by",
            "created_at",
        )
        read_only_fields = fields

    def get_error(self, graph: models.Graph) -> str:
        """The job's own words."""
        return graph.job.error_message if graph.job is not None else ""


class GraphDetailSerializer(GraphRowSerializer):
    """A graph with what people have arranged on its page."""

    view = serializers.DictField(read_only=True, help_text="Pins, groups, sliders.")
    etag = EtagField()

    class Meta(GraphRowSerializer.Meta):
        fields = (*GraphRowSerializer.Meta.fields, "view", "etag")
        read_only_fields = fields


class GraphJobSerializer(serializers.Serializer[Any]):
    """A graph and the job that computes it."""

    graph = GraphRowSerializer()
    job = JobSerializer()


class GraphCreateSerializer(serializers.Serializer[Any]):
    """A graph to compute. The target's ``sae`` is the id, or the fingerprint, of one of ``saes``."""

    model = VisibleField(LanguageModel)
    name = serializers.CharField(max_length=120)
    prompt = serializers.CharField(max_length=100_000, trim_whitespace=False)
    target = StructField(GraphTarget)
    saes = serializers.ListField(child=VisibleField(Sae), required=False, default=list, max_length=256)
    hops = serializers.IntegerField(required=False, default=DEFAULT_HOPS, min_value=1, max_value=MAX_HOPS)
    parents = serializers.IntegerField(
        required=False, default=DEFAULT_PARENTS, min_value=1, max_value=MAX_PARENTS
    )
    shown = serializers.IntegerField(required=False, default=DEFAULT_SHOWN, min_value=1, max_value=MAX_SHOWN)
    verify = serializers.BooleanField(required=False, default=True)


class GraphSaveSerializer(serializers.Serializer[Any]):
    """A graph made in a live session, to be kept."""

    model = VisibleField(LanguageModel)
    name = serializers.CharField(max_length=120)
    document = StructField(Graph)


class GraphImportSerializer(serializers.Serializer[Any]):
    """A graph of a file: one of ours, or an attribution graph as circuit-tracer writes it.

    ``model`` says which model of the project it is of, if it is of one.
    """

    project = VisibleField(Project)
    model = VisibleField(LanguageModel, required=False, default=None, allow_null=True)
    name = serializers.CharField(max_length=120)
    document = serializers.DictField(required=False, help_text="What is in the file.")
    upload = serializers.UUIDField(required=False, help_text="The file as a finished upload, if it is large.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """The one or the other."""
        if ("document" in attrs) == ("upload" in attrs):
            raise serializers.ValidationError({"document": "Give the document, or an upload of its file."})
        return attrs


class GraphUpdateSerializer(serializers.Serializer[Any]):
    """What people can change of a graph."""

    name = serializers.CharField(max_length=120, required=False)
    note = serializers.CharField(max_length=4000, required=False, allow_blank=True)
    view = serializers.DictField(required=False)


class GraphDocumentSerializer(StructSerializer):
    """The whole graph."""

    struct = Graph


class GraphCommentSerializer(serializers.ModelSerializer[models.GraphComment]):
    """What somebody said about a graph."""

    author = serializers.CharField(source="author.username", read_only=True, default=None, allow_null=True)

    class Meta:
        model = models.GraphComment
        fields = ("id", "text", "author", "created_at")
        read_only_fields = fields


class GraphCommentCreateSerializer(serializers.Serializer[Any]):
    """Something to say."""

    text = serializers.CharField(max_length=4000)
