"""SAEs and evaluations as JSON."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.core.etags import EtagField
from apps.core.views import VisibleField
from apps.jobs.serializers import JobSerializer
from apps.registry.models import LanguageModel, Recording
from apps.saes.models import Evaluation, Sae


class GoalSerializer(serializers.Serializer[Any]):
    """A goal, its formula, and whether it was reached (null: not measured)."""

    name = serializers.CharField()
    value = serializers.FloatField(allow_null=True)
    limit = serializers.FloatField()
    better = serializers.CharField(required=False)
    passed = serializers.BooleanField(allow_null=True)
    formula = serializers.CharField()


class EvaluationSerializer(serializers.ModelSerializer[Evaluation]):
    """Measurements of an SAE on held-out text."""

    sae = serializers.UUIDField(source="sae_id", read_only=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    metrics = serializers.DictField(
        child=serializers.FloatField(allow_null=True),
        read_only=True,
        help_text="By name: fvu, l0, ce_recovered …",
    )
    goals = GoalSerializer(many=True, read_only=True)
    details = serializers.DictField(read_only=True, help_text="Site, token filter, histogram of densities …")

    class Meta:
        model = Evaluation
        fields = ("id", "sae", "metrics", "goals", "details", "artifact", "job", "created_at")
        read_only_fields = fields


class AnalysisSummarySerializer(serializers.Serializer[Any]):
    """What the analysis of an SAE's features found."""

    id = serializers.UUIDField()
    n_features = serializers.IntegerField()
    dead = serializers.IntegerField()
    tokens = serializers.IntegerField()
    manifest = serializers.DictField()
    created_at = serializers.DateTimeField()


# One of each for all rows: a serializer of its own for every row would mostly copy fields.
_evaluation, _analysis = EvaluationSerializer(), AnalysisSummarySerializer()


class SaeSerializer(serializers.ModelSerializer[Sae]):
    """An SAE with its newest evaluation and its analysis, when there are."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    recording = serializers.UUIDField(source="recording_id", read_only=True, allow_null=True)
    recording_name = serializers.CharField(
        source="recording.name", read_only=True, default=None, allow_null=True
    )
    model = serializers.UUIDField(source="model_id", read_only=True)
    model_name = serializers.CharField(source="model.name", read_only=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    params = serializers.DictField(read_only=True)
    summary = serializers.DictField(read_only=True)
    etag = EtagField()
    evaluation = serializers.SerializerMethodField()
    analysis = serializers.SerializerMethodField()

    class Meta:
        model = Sae
        fields = (
            "id",
            "project",
            "name",
            "recording",
            "recording_name",
            "model",
            "model_name",
            "architecture",
            "layer",
            "site",
            "width",
            "k",
            "params",
            "state",
            "fingerprint",
            "summary",
            "evaluation",
            "analysis",
            "artifact",
            "job",
            "etag",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(EvaluationSerializer(allow_null=True))
    def get_evaluation(self, sae: Sae) -> Any:
        """The newest evaluation."""
        newest = getattr(sae, "evaluations_newest_first", [])
        return _evaluation.to_representation(newest[0]) if newest else None

    @extend_schema_field(AnalysisSummarySerializer(allow_null=True))
    def get_analysis(self, sae: Sae) -> Any:
        """The analysis of its features."""
        try:
            return _analysis.to_representation(sae.analysis)
        except ObjectDoesNotExist:
            return None


class SaeCreateSerializer(serializers.Serializer[Any]):
    """An SAE to train; ``params`` are those of the job kind ``train``."""

    recording = VisibleField(Recording)
    name = serializers.CharField(max_length=120)
    params = serializers.DictField(help_text="See /api/v1/job-kinds, kind train.")


class SaeJobSerializer(serializers.Serializer[Any]):
    """An SAE and a job about it."""

    sae = SaeSerializer()
    job = JobSerializer()


class SaesJobSerializer(SaeJobSerializer):
    """The first SAE of a request and its job, and those of the other combinations it asked for."""

    more = SaeJobSerializer(many=True)


class JobParamsSerializer(serializers.Serializer[Any]):
    """Parameters of a job about something that exists."""

    params = serializers.DictField(required=False, default=dict, help_text="See /api/v1/job-kinds.")


class MeasureSerializer(JobParamsSerializer):
    """Parameters of a job that measures an SAE on a recording."""

    recording = VisibleField(
        Recording,
        required=False,
        default=None,
        allow_null=True,
        help_text="For an imported SAE that has none yet: what to measure it on, from now on.",
    )


class SaeImportSerializer(serializers.Serializer[Any]):
    """An SAE of another library to bring in; ``params`` are those of the job kind ``import_sae``."""

    model = VisibleField(LanguageModel)
    recording = VisibleField(
        Recording,
        required=False,
        default=None,
        allow_null=True,
        help_text="What to test it on; without one it is tested on what the model computes on a short text.",
    )
    name = serializers.CharField(max_length=120)
    uploads = serializers.ListField(
        child=serializers.UUIDField(), min_length=1, max_length=1000, help_text="Finished uploads, its files."
    )
    params = serializers.DictField(required=False, default=dict, help_text="See /api/v1/job-kinds.")


class SaeExportSerializer(serializers.Serializer[Any]):
    """A library to write an SAE for; ``params`` are those of the job kind ``export_sae``."""

    params = serializers.DictField(
        required=False,
        default=dict,
        help_text="format: native, saelens, sparsify, dictionary_learning, neuronpedia.",
    )
