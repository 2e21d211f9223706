"""Exports and adapters over REST."""

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

from apps.artifacts.archives import send_archive
from apps.artifacts.services import send_file
from apps.core.errors import Refused
from apps.core.schema import ARCHIVE_ANSWERS, FILE_ANSWERS, ErrorResponseSerializer
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.patches import adapters, exports
from apps.patches.export_serializers import (
    AdapterCreateSerializer,
    AdapterJobSerializer,
    AdapterSerializer,
    ExportJobSerializer,
    ExportSerializer,
    OverrideSerializer,
)
from apps.patches.models import Adapter, Certificate, Export, Gate
from apps.projects.policies import Action, require
from apps.registry.views import StateFilter
from apps.saes.serializers import JobParamsSerializer


class ExportFilter(StateFilter):
    """Exports by patch, target and gate."""

    patch = django_filters.UUIDFilter(field_name="patch_id")
    target = django_filters.CharFilter()
    gate = django_filters.ChoiceFilter(choices=Gate.choices)


class ExportViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """Exports of the user's patches, newest first."""

    model = Export
    serializer_class = ExportSerializer
    filterset_class = ExportFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible exports with what a list shows."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove an export with its certificates and files."""
        exports.delete_export(actor=self.actor, export=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=JobParamsSerializer, responses={202: ExportJobSerializer}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    def certify(self, request: Request, pk: UUID) -> Response:
        """Measure the export again, for instance on prompts of one's own (``params.triggers``)."""
        export = self.get_object()
        data = JobParamsSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        export, job = exports.start_certificate(
            actor=self.actor,
            export=export,
            params=data.validated_data["params"],
            idempotency_key=idempotency_key(request),
        )
        answer = ExportJobSerializer({"export": export, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=OverrideSerializer, responses=ExportSerializer)
    @action(detail=True, methods=["post"])
    def override(self, request: Request, pk: UUID) -> Response:
        """Let a blocked export out, with a reason. For owners; audited."""
        export = self.get_object()
        require(self.actor, Action.OVERRIDE_GATES, export.project_id)
        data = OverrideSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        shown = exports.override_gates(actor=self.actor, export=export, **data.validated_data)
        return Response(ExportSerializer(shown).data)

    @extend_schema(responses=FILE_ANSWERS)
    @action(detail=True, url_path="files/<path:name>", url_name="file")
    def file(self, request: Request, pk: UUID, name: str) -> HttpResponseBase:
        """Download one file, if the gates were passed (else 409 with the numbers); supports a byte range."""
        artifact = exports.open_gate(actor=self.actor, export=self.get_object(), what=name)
        return send_file(artifact, name, range_header=request.headers.get("Range", ""))

    @extend_schema(responses=ARCHIVE_ANSWERS)
    @action(detail=True, url_path="zip")
    def archive(self, request: Request, pk: UUID) -> HttpResponseBase:
        """Download all files as one archive, if the gates were passed (else 409 with the numbers)."""
        return send_archive(exports.open_gate(actor=self.actor, export=self.get_object(), what="zip"))

    @extend_schema(responses={(200, "application/json"): OpenApiTypes.OBJECT, 409: ErrorResponseSerializer})
    @action(detail=True)
    def certificate(self, request: Request, pk: UUID) -> HttpResponseBase:
        """The newest certificate as a JSON file."""
        return send_file(self._certificate_files(), "certificate.json")

    @extend_schema(responses={(200, "text/html"): OpenApiTypes.STR, 409: ErrorResponseSerializer})
    @action(detail=True, url_path="certificate/report", url_name="report")
    def report(self, request: Request, pk: UUID) -> HttpResponseBase:
        """The newest certificate as a page of its own, in a sandbox."""
        return send_file(self._certificate_files(), "certificate.html", inline_report=True)

    def _certificate_files(self) -> Any:
        export: Export = self.get_object()
        certificate: Certificate | None = exports.newest_certificate(export)
        if certificate is None or certificate.artifact is None:
            raise Refused(
                "not_certified",
                "This export has not been measured yet.",
                "Wait for its certificate.",
                status=409,
            )
        return certificate.artifact


class AdapterFilter(StateFilter):
    """Adapters by model."""

    model = django_filters.UUIDFilter(field_name="model_id")


class AdapterViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """LoRA adapters that were brought in."""

    model = Adapter
    serializer_class = AdapterSerializer
    filterset_class = AdapterFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible adapters with what a list names."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(
        request=AdapterCreateSerializer, responses={202: AdapterJobSerializer}, parameters=IDEMPOTENT
    )
    def create(self, request: Request) -> Response:
        """Bring an adapter in from finished uploads; a job checks it against the model and makes a patch of it."""
        data = AdapterCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = data.validated_data
        adapter, job = adapters.start_import(
            actor=self.actor,
            model=values["model"],
            name=values["name"],
            upload_ids=values["uploads"],
            idempotency_key=idempotency_key(request),
        )
        answer = AdapterJobSerializer({"adapter": adapter, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove an adapter no patch uses."""
        adapters.delete_adapter(actor=self.actor, adapter=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)
