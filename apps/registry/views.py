"""Models, corpora and recordings over REST."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.idempotency import answered_once
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.registry import imports, references, services
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.serializers import (
    BuiltinCorpusSerializer,
    CorpusCreateSerializer,
    CorpusImportSerializer,
    CorpusJobSerializer,
    CorpusSerializer,
    ModelCreateSerializer,
    ModelJobSerializer,
    ModelSerializer,
    RecordingCreateSerializer,
    RecordingImportSerializer,
    RecordingJobSerializer,
    RecordingSerializer,
    RenameSerializer,
)


class ProjectFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Rows of one project."""

    project = django_filters.UUIDFilter(field_name="project_id")


class StateFilter(ProjectFilter):
    """Rows of one project, by state."""

    state = django_filters.ChoiceFilter(choices=ResultState.choices)


class RecordingFilter(StateFilter):
    """Recordings by model and corpus, too."""

    model = django_filters.UUIDFilter(field_name="model_id")
    corpus = django_filters.UUIDFilter(field_name="corpus_id")


class NamedViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Rows of a project whose name people may change."""

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One of them, with its ETag."""
        row = self.get_object()
        return with_etag(row, self.get_serializer(row).data)

    @extend_schema(request=RenameSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Give it another name."""
        data = RenameSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        services.rename(
            actor=self.actor,
            row=self.get_object(),
            name=data.validated_data["name"],
            made_from=if_match(request),
        )
        row = self.get_object()
        return with_etag(row, self.get_serializer(row).data)


class ModelViewSet(NamedViewSet):
    """Language models of the user's projects."""

    model = LanguageModel
    serializer_class = ModelSerializer
    filterset_class = StateFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible models with their resident state."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(request=ModelCreateSerializer, responses={202: ModelJobSerializer}, parameters=IDEMPOTENT)
    def create(self, request: Request) -> Response:
        """Add a model. A job looks at it; its facts, or what is wrong, follow within seconds."""
        data = ModelCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        model, job = services.create_model(
            actor=self.actor, idempotency_key=idempotency_key(request), **data.validated_data
        )
        return Response(
            ModelJobSerializer({"model": model, "job": job}).data, status=status.HTTP_202_ACCEPTED
        )

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a model nothing was recorded with."""
        services.delete_model(actor=self.actor, model=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=None, responses={202: ModelSerializer})
    @action(detail=True, methods=["post"])
    def load(self, request: Request, pk: UUID) -> Response:
        """Bring the model into memory; watch ``resident`` or the live socket for when it is ready."""
        model = services.set_wanted(actor=self.actor, model=self.get_object(), wanted=True)
        return Response(ModelSerializer(model).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={202: ModelSerializer})
    @action(detail=True, methods=["post"])
    def unload(self, request: Request, pk: UUID) -> Response:
        """Take the model out of memory."""
        model = services.set_wanted(actor=self.actor, model=self.get_object(), wanted=False)
        return Response(ModelSerializer(model).data, status=status.HTTP_202_ACCEPTED)


class CorpusViewSet(NamedViewSet):
    """Texts of the user's projects."""

    model = Corpus
    serializer_class = CorpusSerializer
    filterset_class = StateFilter

    @extend_schema(request=CorpusCreateSerializer, responses={201: CorpusSerializer}, parameters=IDEMPOTENT)
    @answered_once
    def create(self, request: Request) -> Response:
        """Add a built-in corpus or a Hub dataset."""
        data = CorpusCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        corpus = services.create_corpus(actor=self.actor, **data.validated_data)
        return Response(CorpusSerializer(corpus).data, status=status.HTTP_201_CREATED)

    @extend_schema(
        operation_id="corpora_import",
        request=CorpusImportSerializer,
        responses={202: CorpusJobSerializer},
        parameters=IDEMPOTENT,
    )
    @action(detail=False, methods=["post"], url_path="import", url_name="import")
    def bring_in(self, request: Request) -> Response:
        """Import an uploaded text (plain, JSON, CSV, Parquet, Arrow); a job reads all of it before it counts."""
        data = CorpusImportSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        corpus, job = imports.import_corpus(
            actor=self.actor,
            files=values.pop("uploads"),
            idempotency_key=idempotency_key(request),
            **values,
        )
        answer = CorpusJobSerializer({"corpus": corpus, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a corpus nothing was recorded on."""
        services.delete_corpus(actor=self.actor, corpus=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=BuiltinCorpusSerializer(many=True))
    @action(detail=False, pagination_class=None, filter_backends=[])
    def builtin(self, request: Request) -> Response:
        """Texts the server offers; their names are references of the kind ``builtin``."""
        rows = [
            {"name": name, "bytes": references.size_of(path)}
            for name, path in references.builtin_corpora().items()
        ]
        return Response(BuiltinCorpusSerializer(rows, many=True).data)


class RecordingViewSet(NamedViewSet):
    """Recorded activations of the user's projects."""

    model = Recording
    serializer_class = RecordingSerializer
    filterset_class = RecordingFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible recordings with what a list names."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(
        request=RecordingCreateSerializer, responses={202: RecordingJobSerializer}, parameters=IDEMPOTENT
    )
    def create(self, request: Request) -> Response:
        """Record activations of a model on a corpus, or on several mixed by weight."""
        data = RecordingCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        recording, job = services.start_recording(
            actor=self.actor, idempotency_key=idempotency_key(request), **data.validated_data
        )
        answer = RecordingJobSerializer({"recording": recording, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a recording no SAE was trained on."""
        services.delete_recording(actor=self.actor, recording=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="recordings_import",
        request=RecordingImportSerializer,
        responses={202: RecordingJobSerializer},
        parameters=IDEMPOTENT,
    )
    @action(detail=False, methods=["post"], url_path="import", url_name="import")
    def bring_in(self, request: Request) -> Response:
        """Import a recording of a model of the project from uploaded files or its archive."""
        data = RecordingImportSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        recording, job = imports.import_recording(
            actor=self.actor,
            files=values.pop("uploads"),
            idempotency_key=idempotency_key(request),
            **values,
        )
        answer = RecordingJobSerializer({"recording": recording, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=None, responses={202: RecordingJobSerializer}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    def export(self, request: Request, pk: UUID) -> Response:
        """Pack the recording into one archive; download the job's ``artifact`` when it has succeeded."""
        recording = self.get_object()
        job = imports.export_recording(
            actor=self.actor, recording=recording, idempotency_key=idempotency_key(request)
        )
        answer = RecordingJobSerializer({"recording": recording, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)
