"""Views that look at several apps at once: the lineage of a project, and whether the server works."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import structlog
from django.conf import settings
from django.db import connection
from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import get_object_or_404
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.api.lineage import Lineage, lineage
from apps.core.broker import check_broker
from apps.core.structs import StructSerializer
from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import State
from apps.projects.models import Project

log = structlog.get_logger(__name__)


class LineageSerializer(StructSerializer):
    """A project as one picture."""

    struct = Lineage


class LineageView(APIView):
    """The home page of a project in one request."""

    @extend_schema(operation_id="projects_lineage", responses=LineageSerializer)
    def get(self, request: Request, pk: UUID) -> Response:
        """Models, corpora, recordings, SAEs, evaluations, analyses and patches, and what was made from what."""
        project = get_object_or_404(Project.objects.visible_to(request.user), pk=pk)
        return Response(LineageSerializer(lineage(project)).data)


class HealthSerializer(serializers.Serializer[Any]):
    """Whether the server works. Jobs wait while ``workers`` is 0; live updates pause without ``broker``."""

    status = serializers.ChoiceField(choices=["ok", "degraded", "down"])
    database = serializers.BooleanField()
    broker = serializers.BooleanField()
    workers = serializers.IntegerField(help_text="Compute workers heard of lately.")
    queued = serializers.IntegerField(help_text="Jobs that wait.")


class HealthView(APIView):
    """For load balancers, and for the banner that says what is missing."""

    permission_classes = (AllowAny,)
    authentication_classes = ()

    @extend_schema(operation_id="healthz", auth=[], responses={200: HealthSerializer, 503: HealthSerializer})
    def get(self, request: Request) -> Response:
        """Database, broker, workers; 503 without a database."""
        workers = queued = 0
        database = broker = True
        try:
            connection.ensure_connection()
            workers = WorkerNode.objects.alive(settings.WORKBENCH_LEASE_SECONDS).count()
            queued = Job.objects.filter(state=State.QUEUED).count()
        except Exception as error:  # whatever the driver raises: that is the answer
            log.error("health_database", error=str(error))
            database = False
        try:
            check_broker(seconds=1)
        except Exception as error:
            log.warning("health_broker", error=str(error))
            broker = False
        verdict = "down" if not database else "ok" if broker and workers else "degraded"
        shown = {
            "status": verdict,
            "database": database,
            "broker": broker,
            "workers": workers,
            "queued": queued,
        }
        code = status.HTTP_200_OK if database else status.HTTP_503_SERVICE_UNAVAILABLE
        return Response(HealthSerializer(shown).data, status=code)
