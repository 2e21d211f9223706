"""Patches over REST."""

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
from rest_framework.views import APIView

from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.idempotency import answered_once
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.patches import exports, services
from apps.patches.export_serializers import ExportCreateSerializer, ExportJobSerializer, VerdictSerializer
from apps.patches.models import Patch
from apps.patches.serializers import (
    EditKindSerializer,
    PatchCreateSerializer,
    PatchRestoreSerializer,
    PatchSerializer,
    PatchToggleSerializer,
    PatchUpdateSerializer,
    PatchVersionSerializer,
)
from apps.registry.views import ProjectFilter
from microscope.params import edit_kinds


class PatchFilter(ProjectFilter):
    """Patches by model and switch."""

    model = django_filters.UUIDFilter(field_name="model_id")
    enabled = django_filters.BooleanFilter()


class PatchViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Patches of the user's projects."""

    model = Patch
    serializer_class = PatchSerializer
    filterset_class = PatchFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible patches with what a list names."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    def _answer(self, patch: Patch, code: int = status.HTTP_200_OK) -> Response:
        return with_etag(patch, PatchSerializer(patch).data, code)

    @extend_schema(responses=PatchSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One patch, with its version as ETag."""
        return self._answer(self.get_object())

    @extend_schema(request=PatchCreateSerializer, responses={201: PatchSerializer}, parameters=IDEMPOTENT)
    @answered_once
    def create(self, request: Request) -> Response:
        """Make a patch; its plan is checked against the model and the project's SAEs."""
        data = PatchCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        patch = services.create_patch(actor=self.actor, **data.validated_data)
        return self._answer(patch, status.HTTP_201_CREATED)

    @extend_schema(request=PatchUpdateSerializer, responses=PatchSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change a patch; the version before stays and can be restored."""
        patch = self.get_object()
        data = PatchUpdateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        patch = services.update_patch(
            actor=self.actor, patch=patch, changes=data.validated_data, made_from=if_match(request)
        )
        return self._answer(patch)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a patch."""
        services.delete_patch(actor=self.actor, patch=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=PatchToggleSerializer, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def toggle(self, request: Request, pk: UUID) -> Response:
        """Switch the patch on or off."""
        patch = self.get_object()
        data = PatchToggleSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        return self._answer(services.toggle_patch(actor=self.actor, patch=patch, **data.validated_data))

    @extend_schema(request=PatchRestoreSerializer, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def restore(self, request: Request, pk: UUID) -> Response:
        """Make an old version the newest."""
        patch = self.get_object()
        data = PatchRestoreSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        return self._answer(services.restore_version(actor=self.actor, patch=patch, **data.validated_data))

    @extend_schema(responses=PatchVersionSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def versions(self, request: Request, pk: UUID) -> Response:
        """Every version of the patch, newest first."""
        rows = self.get_object().versions.select_related("author").order_by("-version")
        return Response(PatchVersionSerializer(rows, many=True).data)

    @extend_schema(responses=VerdictSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def targets(self, request: Request, pk: UUID) -> Response:
        """Where the patch can go: per target exact, approximate or not possible, with the reason."""
        found = exports.targets_of(self.get_object())
        return Response(VerdictSerializer(found, many=True).data)

    @extend_schema(
        request=ExportCreateSerializer, responses={202: ExportJobSerializer}, parameters=IDEMPOTENT
    )
    @action(detail=True, methods=["post"])
    def export(self, request: Request, pk: UUID) -> Response:
        """Write the patch for one target and measure it; the files can be fetched once its gates are passed."""
        patch = self.get_object()
        data = ExportCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        export, job = exports.start_export(
            actor=self.actor, patch=patch, idempotency_key=idempotency_key(request), **data.validated_data
        )
        answer = ExportJobSerializer({"export": export, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)


class EditKindsView(APIView):
    """Kinds of edits, those of installed packages behind the own ones."""

    @extend_schema(operation_id="edit_kinds_list", responses=EditKindSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Every kind, as a plan and a form need to know it."""
        return Response(EditKindSerializer(edit_kinds().values(), many=True).data)
