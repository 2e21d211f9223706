"""Record, train, evaluate and analyse as one request: each job waits for the one whose result it needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from uuid import UUID

from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.audit import services as audit
from apps.core.errors import Refused
from apps.core.idempotency import gone, replayed, reused
from apps.core.views import IDEMPOTENT, VisibleField, VisibleViewSet, idempotency_key
from apps.features.services import start_analysis
from apps.jobs import services as jobs
from apps.jobs.models import Pipeline
from apps.jobs.serializers import PipelineSerializer
from apps.projects.models import Project
from apps.projects.policies import Action, require
from apps.registry.models import Corpus, LanguageModel, Recording
from apps.registry.services import start_recording
from apps.registry.views import ProjectFilter
from apps.saes.services import start_evaluation, start_training


class PipelineCreateSerializer(serializers.Serializer[Any]):
    """What to do in one go. Give ``model`` and ``corpus`` to record first, or a ``recording`` that is ready.

    Parameters are those of the job kinds; ``evaluate`` and ``analyse`` may be null to leave them out.
    """

    name = serializers.CharField(max_length=120, help_text="Of the pipeline, the recording and the SAE.")
    model = VisibleField(LanguageModel, required=False)
    corpus = VisibleField(Corpus, required=False)
    recording = VisibleField(Recording, required=False)
    trace = serializers.DictField(required=False, help_text="Parameters of recording; needed with a model.")
    train = serializers.DictField(help_text="Parameters of training.")
    evaluate = serializers.DictField(required=False, allow_null=True, default=dict)
    analyse = serializers.DictField(required=False, allow_null=True, default=dict)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Either something to record, or a recording."""
        fresh = {"model", "corpus", "trace"} & set(attrs)
        if "recording" in attrs and fresh:
            raise serializers.ValidationError(
                {"recording": "Give a recording, or a model with a corpus, not both."}
            )
        if "recording" not in attrs and len(fresh) < 3:
            missing = min({"model", "corpus", "trace"} - fresh)
            raise serializers.ValidationError({missing: "It is needed to record."}, code="required")
        return attrs


class PipelineStartedSerializer(serializers.Serializer[Any]):
    """The pipeline, and what it will make."""

    pipeline = PipelineSerializer()
    recording = serializers.UUIDField(source="recording_id")
    sae = serializers.UUIDField(source="sae_id")


class Started(NamedTuple):
    """A new pipeline."""

    pipeline: Pipeline
    recording_id: UUID
    sae_id: UUID


def start_pipeline(
    *,
    actor: Any,
    name: str,
    train: dict[str, Any],
    model: LanguageModel | None = None,
    corpus: Corpus | None = None,
    recording: Recording | None = None,
    trace: dict[str, Any] | None = None,
    evaluate: dict[str, Any] | None = None,
    analyse: dict[str, Any] | None = None,
    idempotency_key: str = "",
) -> Started:
    """Submit all jobs, or none of them when one is refused.

    Raises:
        Refused, MicroscopeError: what submitting the jobs one by one raises.
    """
    project = model.project if model is not None else recording.project if recording is not None else None
    assert project is not None

    def make(pipeline: Pipeline) -> None:
        source, before = recording, None
        if source is None:
            assert model is not None
            assert corpus is not None
            source, before = start_recording(
                actor=actor,
                model=model,
                parts=[(corpus, 1.0)],
                name=name,
                params=trace or {},
                pipeline=pipeline,
            )
        sae, trained = start_training(
            actor=actor, recording=source, name=name, params=train, after=before, pipeline=pipeline
        )
        if evaluate is not None:
            start_evaluation(actor=actor, sae=sae, params=evaluate, after=trained, pipeline=pipeline)
        if analyse is not None:
            start_analysis(actor=actor, sae=sae, params=analyse, after=trained, pipeline=pipeline)

    return _started(
        pipeline_once(actor=actor, project=project, name=name, idempotency_key=idempotency_key, make=make)
    )


def pipeline_once(
    *, actor: Any, project: Project, name: str, idempotency_key: str, make: Callable[[Pipeline], None]
) -> Pipeline:
    """A pipeline with the jobs that ``make`` submits, or none of them when one is refused; once per key.

    Raises:
        Refused, MicroscopeError: what ``make`` raises, or ``idempotency_key_reused``.
    """
    require(actor, Action.RUN_JOBS, project)

    def earlier() -> Pipeline | None:
        if not idempotency_key:
            return None
        found = Pipeline.objects.filter(created_by=actor, idempotency_key=idempotency_key).first()
        if found is None:
            return None
        replayed(found, actor)
        if found.project_id != project.pk:
            raise reused()
        return found

    known = earlier()
    if known is not None:
        return known
    try:
        with transaction.atomic():
            pipeline = Pipeline.objects.create(
                project=project, created_by=actor, name=name, idempotency_key=idempotency_key or None
            )
            make(pipeline)
            audit.record(actor=actor, action="pipeline.started", target=pipeline, project_id=project.pk)
    except (IntegrityError, Refused):
        known = earlier()  # the same request arrived twice at once and the other one was faster
        if known is None:
            raise
        return known
    return pipeline


def _started(pipeline: Pipeline) -> Started:
    from apps.saes.models import Sae

    train = pipeline.jobs.filter(kind="train").first()
    sae = Sae.objects.filter(pk=train.subject_id).first() if train is not None else None
    if sae is None:
        raise gone()
    assert sae.recording_id is not None  # it was trained on one
    return Started(Pipeline.objects.for_display().get(pk=pipeline.pk), sae.recording_id, sae.pk)


class PipelineViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """Pipelines of the user's projects, newest first."""

    model = Pipeline
    serializer_class = PipelineSerializer
    filterset_class = ProjectFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible pipelines with their jobs."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(
        request=PipelineCreateSerializer, responses={202: PipelineStartedSerializer}, parameters=IDEMPOTENT
    )
    def create(self, request: Request) -> Response:
        """Record, train, evaluate and analyse in one go. When a job fails, those after it are cancelled."""
        data = PipelineCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        started = start_pipeline(
            actor=self.actor, idempotency_key=idempotency_key(request), **data.validated_data
        )
        return Response(PipelineStartedSerializer(started).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses=PipelineSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Ask every job that has not ended to stop."""
        jobs.cancel_pipeline(actor=self.actor, pipeline=self.get_object())
        return Response(PipelineSerializer(self.get_object()).data)

    @extend_schema(request=None, responses=PipelineSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: UUID) -> Response:
        """Continue where it broke; what has succeeded is kept."""
        jobs.retry_pipeline(actor=self.actor, pipeline=self.get_object())
        return Response(PipelineSerializer(self.get_object()).data)
