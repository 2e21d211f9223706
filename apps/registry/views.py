"""Models, corpora and recordings over REST."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import django_filters
from django.conf import settings
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.parsers import JSONParser, MultiPartParser
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.idempotency import answered_once
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.registry import places, services, uploads
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.serializers import (
    BuiltinCorpusSerializer,
    CorpusCreateSerializer,
    CorpusSerializer,
    ModelCreateSerializer,
    ModelJobSerializer,
    ModelSerializer,
    RecordingCreateSerializer,
    RecordingJobSerializer,
    RecordingSerializer,
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


class ModelViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
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


class CorpusViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """Texts of the user's projects."""

    model = Corpus
    serializer_class = CorpusSerializer
    filterset_class = ProjectFilter
    parser_classes = (JSONParser, MultiPartParser)

    @extend_schema(
        request={"application/json": CorpusCreateSerializer, "multipart/form-data": CorpusCreateSerializer},
        responses={201: CorpusSerializer},
        parameters=IDEMPOTENT,
    )
    @answered_once
    def create(self, request: Request) -> Response:
        """Add a built-in corpus, a Hub dataset, or an upload (.txt, .jsonl, .parquet; checked by content)."""
        limit = settings.WORKBENCH_UPLOAD_MAX_MB * 2**20
        # Announced size first: a refusal should not cost reading it all. One MiB is for the form around the file.
        if int(request.headers.get("Content-Length") or 0) > limit + 2**20:
            raise uploads.too_large(limit)
        data = CorpusCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        file = values.pop("file", None)
        upload = (file.name or "upload", file.chunks()) if file is not None else None
        corpus = services.create_corpus(actor=self.actor, upload=upload, **values)
        return Response(CorpusSerializer(corpus).data, status=status.HTTP_201_CREATED)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a corpus nothing was recorded on."""
        services.delete_corpus(actor=self.actor, corpus=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=BuiltinCorpusSerializer(many=True))
    @action(detail=False, pagination_class=None, filter_backends=[])
    def builtin(self, request: Request) -> Response:
        """Texts the server offers; their names are references of the kind ``builtin``."""
        rows = [
            {"name": name, "bytes": places.size_of(path)} for name, path in places.builtin_corpora().items()
        ]
        return Response(BuiltinCorpusSerializer(rows, many=True).data)


class RecordingViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
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
