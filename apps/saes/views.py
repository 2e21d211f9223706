"""SAEs and evaluations over REST."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from django.http.response import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.artifacts.services import send_file
from apps.core.errors import NotVisible
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.projects.policies import Action, require
from apps.registry.views import NamedViewSet, StateFilter
from apps.saes import services
from apps.saes.models import Evaluation, Sae
from apps.saes.serializers import (
    EvaluationSerializer,
    MeasureSerializer,
    SaeCreateSerializer,
    SaeExportSerializer,
    SaeImportSerializer,
    SaeJobSerializer,
    SaeSerializer,
    SaesJobSerializer,
)


class SaeFilter(StateFilter):
    """SAEs by recording, model, layer and fingerprint."""

    recording = django_filters.UUIDFilter(field_name="recording_id")
    model = django_filters.UUIDFilter(field_name="model_id")
    layer = django_filters.NumberFilter()
    fingerprint = django_filters.CharFilter()


class EvaluationFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Evaluations by project and SAE."""

    project = django_filters.UUIDFilter(field_name="sae__project_id")
    sae = django_filters.UUIDFilter(field_name="sae_id")


class SaeViewSet(NamedViewSet):
    """SAEs of the user's projects."""

    model = Sae
    serializer_class = SaeSerializer
    filterset_class = SaeFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible SAEs with what a list shows."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(request=SaeCreateSerializer, responses={202: SaesJobSerializer}, parameters=IDEMPOTENT)
    def create(self, request: Request) -> Response:
        """Train an SAE on one layer of a recording, or one for each combination of several widths, k and seeds."""
        data = SaeCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        started = services.start_trainings(
            actor=self.actor, idempotency_key=idempotency_key(request), **data.validated_data
        )
        first, *more = ({"sae": sae, "job": job} for sae, job in started)
        return Response(SaesJobSerializer({**first, "more": more}).data, status=status.HTTP_202_ACCEPTED)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove an SAE with its evaluations and features."""
        services.delete_sae(actor=self.actor, sae=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        operation_id="saes_import",
        request=SaeImportSerializer,
        responses={202: SaeJobSerializer},
        parameters=IDEMPOTENT,
    )
    @action(detail=False, methods=["post"], url_path="import", url_name="import")
    def bring_in(self, request: Request) -> Response:
        """Import an SAE of another library from uploaded files; its smoke test is in ``summary`` afterwards."""
        data = SaeImportSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        sae, job = services.import_sae(
            actor=self.actor,
            files=values.pop("uploads"),
            idempotency_key=idempotency_key(request),
            **values,
        )
        return Response(SaeJobSerializer({"sae": sae, "job": job}).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=SaeExportSerializer, responses={202: SaeJobSerializer}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    def export(self, request: Request, pk: UUID) -> Response:
        """Write the SAE for another library; download the job's ``artifact`` when it has succeeded."""
        sae = self.get_object()
        data = SaeExportSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        job = services.export_sae(
            actor=self.actor, sae=sae, idempotency_key=idempotency_key(request), **data.validated_data
        )
        return Response(SaeJobSerializer({"sae": sae, "job": job}).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=MeasureSerializer, responses={202: SaeJobSerializer}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    def evaluate(self, request: Request, pk: UUID) -> Response:
        """Measure the SAE on the held-out part of its recording."""
        sae = self.get_object()
        data = MeasureSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        job = services.start_evaluation(
            actor=self.actor, sae=sae, idempotency_key=idempotency_key(request), **data.validated_data
        )
        return Response(SaeJobSerializer({"sae": sae, "job": job}).data, status=status.HTTP_202_ACCEPTED)


class EvaluationViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """Evaluations of the user's SAEs, newest first."""

    model = Evaluation
    serializer_class = EvaluationSerializer
    filterset_class = EvaluationFilter

    @extend_schema(responses={(200, "text/html"): OpenApiTypes.STR})
    @action(detail=True)
    def report(self, request: Request, pk: UUID) -> HttpResponseBase:
        """The report as a page of its own, in a sandbox; its files are in the artifact."""
        evaluation = Evaluation.objects.select_related("artifact", "sae").get(pk=self.get_object().pk)
        require(self.actor, Action.VIEW, evaluation.sae.project_id)
        if evaluation.artifact is None:
            raise NotVisible("This evaluation has no report")
        return send_file(evaluation.artifact, "report.html", inline_report=True)
