"""Bundles over REST."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.permissions import TokenScopes
from apps.accounts.scopes import Scope
from apps.bundles import services
from apps.bundles.serializers import (
    ProjectExportSerializer,
    ProjectImportSerializer,
    ProjectJobSerializer,
)
from apps.core.views import IDEMPOTENT, get_or_404, idempotency_key
from apps.jobs.models import Job
from apps.projects.models import Project


class ProjectExportView(APIView):
    """A project as one file."""

    @extend_schema(
        operation_id="projects_export",
        request=ProjectExportSerializer,
        responses={202: ProjectJobSerializer},
        parameters=IDEMPOTENT,
    )
    def post(self, request: Request, pk: UUID) -> Response:
        """Pack the project with its files; download the job's ``artifact`` when it has succeeded."""
        project = get_or_404(Project.objects.visible_to(request.user).with_role(request.user), pk=pk)
        data = ProjectExportSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        job = services.start_export(
            actor=request.user,
            project=project,
            params=data.validated_data["params"],
            idempotency_key=idempotency_key(request),
        )
        return _started(project, job)


class ProjectImportView(APIView):
    """A project from one file."""

    token_scopes: ClassVar[TokenScopes] = {"post": Scope.ADMIN}

    @extend_schema(
        operation_id="projects_import",
        request=ProjectImportSerializer,
        responses={202: ProjectJobSerializer},
        parameters=IDEMPOTENT,
    )
    def post(self, request: Request) -> Response:
        """Make a project of a bundle from this or another instance. You own it; its members stay behind."""
        data = ProjectImportSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        project, job = services.start_import(
            actor=request.user,
            name=data.validated_data["name"],
            upload_ids=data.validated_data["uploads"],
            idempotency_key=idempotency_key(request),
        )
        return _started(project, job)


def _started(project: Project, job: Job) -> Response:
    shown = Job.objects.for_display().get(pk=job.pk)
    answer = ProjectJobSerializer({"project": project, "job": shown})
    return Response(answer.data, status=status.HTTP_202_ACCEPTED)
