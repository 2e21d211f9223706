"""Models, corpora and recordings as JSON."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ObjectDoesNotExist
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from apps.core.etags import EtagField
from apps.core.structs import StructField
from apps.core.views import VisibleField
from apps.jobs.serializers import JobSerializer
from apps.projects.models import Project
from apps.registry.mixtures import MAX_PARTS
from apps.registry.models import MIN_WEIGHT, Corpus, LanguageModel, Recording, RecordingPart
from microscope.params import Running


class RenameSerializer(serializers.Serializer[Any]):
    """Another name."""

    name = serializers.CharField(max_length=120)


class ResidentStateSerializer(serializers.Serializer[Any]):
    """The process that holds a model in memory."""

    state = serializers.ChoiceField(choices=["starting", "ready", "failed", "stopped", "lost"])
    code = serializers.CharField(source="error_code", allow_blank=True)
    message = serializers.CharField(source="error_message", allow_blank=True)
    hint = serializers.CharField(source="error_hint", allow_blank=True)
    memory_bytes = serializers.IntegerField(allow_null=True)
    host = serializers.CharField(allow_blank=True)
    started_at = serializers.DateTimeField(allow_null=True)
    heartbeat_at = serializers.DateTimeField(allow_null=True)
    running = StructField(Running, read_only=True, allow_null=True)


# One for all rows: a serializer of its own for every row would mostly copy fields.
_resident = ResidentStateSerializer()


class ModelSerializer(serializers.ModelSerializer[LanguageModel]):
    """A language model. ``facts`` is empty until it has been looked at."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    facts = serializers.DictField(read_only=True)
    etag = EtagField()
    resident = serializers.SerializerMethodField()

    class Meta:
        model = LanguageModel
        fields = (
            "id",
            "project",
            "name",
            "source",
            "reference",
            "revision",
            "dtype",
            "state",
            "facts",
            "fingerprint",
            "wanted_loaded",
            "resident",
            "job",
            "etag",
            "created_at",
        )
        read_only_fields = fields

    @extend_schema_field(ResidentStateSerializer(allow_null=True))
    def get_resident(self, model: LanguageModel) -> dict[str, Any] | None:
        """The process that holds it, if there was ever one."""
        try:
            resident = model.resident
        except ObjectDoesNotExist:
            return None
        return _resident.to_representation(resident)


class ModelCreateSerializer(serializers.Serializer[Any]):
    """A model to add."""

    project = VisibleField(Project)
    name = serializers.CharField(max_length=120)
    source = serializers.ChoiceField(  # type: ignore[assignment]
        choices=LanguageModel.Source.choices
    )
    reference = serializers.CharField(max_length=500, help_text="Hub id, or a path on the server.")
    revision = serializers.CharField(max_length=120, required=False, allow_blank=True, default="")
    dtype = serializers.ChoiceField(choices=LanguageModel.Dtype.choices, default=LanguageModel.Dtype.AUTO)


class ModelJobSerializer(serializers.Serializer[Any]):
    """A new model and the job that looks at it."""

    model = ModelSerializer()
    job = JobSerializer()


class CorpusSerializer(serializers.ModelSerializer[Corpus]):
    """A corpus. An uploaded one is ``ready`` when a job has read all of it."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    etag = EtagField()

    class Meta:
        model = Corpus
        fields = (
            "id",
            "project",
            "name",
            "kind",
            "reference",
            "text_field",
            "bytes",
            "documents",
            "state",
            "job",
            "etag",
            "created_at",
        )
        read_only_fields = fields


class CorpusCreateSerializer(serializers.Serializer[Any]):
    """A corpus that is somewhere already; files of one's own are uploaded and imported."""

    project = VisibleField(Project)
    name = serializers.CharField(max_length=120)
    kind = serializers.ChoiceField(
        choices=[(kind.value, kind.label) for kind in (Corpus.Kind.BUILTIN, Corpus.Kind.HUB_DATASET)]
    )
    reference = serializers.CharField(
        max_length=500, help_text="Name of a built-in corpus, or Hub id of a dataset."
    )
    text_field = serializers.CharField(max_length=80, required=False, default="text")


class CorpusImportSerializer(serializers.Serializer[Any]):
    """A text to bring in; ``params`` are those of the job kind ``import_corpus``."""

    project = VisibleField(Project)
    name = serializers.CharField(max_length=120)
    uploads = serializers.ListField(
        child=serializers.UUIDField(),
        min_length=1,
        max_length=1,
        help_text="The finished upload of the file.",
    )
    params = serializers.DictField(required=False, default=dict, help_text="See /api/v1/job-kinds.")


class CorpusJobSerializer(serializers.Serializer[Any]):
    """A corpus and the job that brings it in."""

    corpus = CorpusSerializer()
    job = JobSerializer()


class BuiltinCorpusSerializer(serializers.Serializer[Any]):
    """A text the server offers."""

    name = serializers.CharField()
    bytes = serializers.IntegerField()


class RecordingPartSerializer(serializers.ModelSerializer[RecordingPart]):
    """One of the corpora of a mixture; ``weight`` is its share of tokens relative to the others'."""

    corpus = serializers.UUIDField(source="corpus_id", read_only=True)
    name = serializers.CharField(source="corpus.name", read_only=True)

    class Meta:
        model = RecordingPart
        fields = ("corpus", "name", "weight")
        read_only_fields = fields


class RecordingSerializer(serializers.ModelSerializer[Recording]):
    """A recording. ``summary`` is empty until it is ready, ``mixture`` when one corpus is all its text.

    One that was imported has no ``corpus``; ``summary`` says what it was recorded on.
    """

    project = serializers.UUIDField(source="project_id", read_only=True)
    model = serializers.UUIDField(source="model_id", read_only=True)
    model_name = serializers.CharField(source="model.name", read_only=True)
    corpus = serializers.UUIDField(source="corpus_id", read_only=True, allow_null=True)
    corpus_name = serializers.CharField(source="corpus.name", read_only=True, default=None, allow_null=True)
    mixture = RecordingPartSerializer(source="parts", many=True, read_only=True)
    artifact = serializers.UUIDField(source="artifact_id", read_only=True, allow_null=True)
    bytes = serializers.IntegerField(source="artifact.bytes", read_only=True, default=None, allow_null=True)
    job = serializers.UUIDField(source="job_id", read_only=True, allow_null=True)
    layers = serializers.ListField(child=serializers.IntegerField(), read_only=True)
    sites = serializers.ListField(
        child=serializers.CharField(), read_only=True, help_text="Which activations of each layer."
    )
    summary = serializers.DictField(read_only=True)
    etag = EtagField()

    class Meta:
        model = Recording
        fields = (
            "id",
            "project",
            "name",
            "model",
            "model_name",
            "corpus",
            "corpus_name",
            "mixture",
            "layers",
            "sites",
            "tokens",
            "state",
            "summary",
            "fingerprint",
            "artifact",
            "bytes",
            "job",
            "etag",
            "created_at",
        )
        read_only_fields = fields


class MixturePartSerializer(serializers.Serializer[Any]):
    """One corpus of a mixture to record."""

    corpus = VisibleField(Corpus)
    weight = serializers.FloatField(
        default=1.0,
        min_value=MIN_WEIGHT,
        max_value=1 / MIN_WEIGHT,
        help_text="Share of tokens, relative to the others'.",
    )


class RecordingCreateSerializer(serializers.Serializer[Any]):
    """A recording to make, of one ``corpus`` or a ``mixture``; ``params`` are those of the job kind ``trace``."""

    model = VisibleField(LanguageModel)
    corpus = VisibleField(Corpus, required=False)
    mixture = MixturePartSerializer(many=True, required=False, allow_empty=False)
    name = serializers.CharField(max_length=120)
    params = serializers.DictField(help_text="See /api/v1/job-kinds, kind trace.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """One corpus or a mixture, as ``parts``."""
        corpus, mixture = attrs.pop("corpus", None), attrs.pop("mixture", None)
        if (corpus is None) == (mixture is None):
            raise serializers.ValidationError({"corpus": "Give a corpus or a mixture, one of the two."})
        if mixture is not None and len(mixture) > MAX_PARTS:
            raise serializers.ValidationError({"mixture": f"At most {MAX_PARTS} corpora can be mixed."})
        parts = [(corpus, 1.0)] if mixture is None else [(p["corpus"], p["weight"]) for p in mixture]
        return {**attrs, "parts": parts}


class RecordingImportSerializer(serializers.Serializer[Any]):
    """A recording of others to bring in."""

    model = VisibleField(LanguageModel, help_text="What it was recorded of.")
    name = serializers.CharField(max_length=120)
    uploads = serializers.ListField(
        child=serializers.UUIDField(),
        min_length=1,
        max_length=5000,
        help_text="Finished uploads: the files of the recording, or its archive.",
    )


class RecordingJobSerializer(serializers.Serializer[Any]):
    """A recording and a job about it."""

    recording = RecordingSerializer()
    job = JobSerializer()
