"""Jobs over REST."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.permissions import TokenScopes
from apps.accounts.scopes import Scope
from apps.core.schema import ErrorResponseSerializer
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.jobs import services
from apps.jobs.kinds import all_kinds
from apps.jobs.models import Job, JobEvent
from apps.jobs.serializers import (
    JobCloneSerializer,
    JobDetailSerializer,
    JobEventsSerializer,
    JobKindSerializer,
    JobPrioritySerializer,
    JobSerializer,
)
from apps.jobs.states import ACTIVE, State

EVENTS_PER_ANSWER = 1000


class JobFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Filters of the job list."""

    project = django_filters.UUIDFilter(field_name="project_id")
    subject = django_filters.UUIDFilter(field_name="subject_id")
    state = django_filters.MultipleChoiceFilter(choices=State.choices)
    kind = django_filters.CharFilter()
    pipeline = django_filters.UUIDFilter(field_name="pipeline_id")
    active = django_filters.BooleanFilter(
        method="filter_active", label="Only unfinished jobs, or only finished ones."
    )

    class Meta:
        model = Job
        fields = ()

    def filter_active(self, queryset: QuerySet[Job], name: str, value: bool) -> QuerySet[Job]:
        """Unfinished or finished jobs."""
        return queryset.filter(state__in=ACTIVE) if value else queryset.exclude(state__in=ACTIVE)


class JobViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Jobs of the user's projects, newest first."""

    model = Job
    serializer_class = JobSerializer
    filterset_class = JobFilter
    token_scopes: ClassVar[TokenScopes] = {"partial_update": Scope.ADMIN}

    def get_queryset(self) -> QuerySet[Any]:
        """Visible jobs with what a list shows."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    @extend_schema(responses=JobDetailSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One job, with its parameters and result."""
        job = self.get_object()
        detail = {"job": job, "params": job.params, "result": job.result}
        return Response(JobDetailSerializer(detail).data)

    @extend_schema(request=None, responses=JobSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: UUID) -> Response:
        """Ask the job to stop."""
        return Response(JobSerializer(services.cancel(actor=self.actor, job=self.get_object())).data)

    @extend_schema(request=None, responses=JobSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: UUID) -> Response:
        """Queue a failed or cancelled job again; work with checkpoints continues where it was."""
        return Response(JobSerializer(services.retry(actor=self.actor, job=self.get_object())).data)

    @extend_schema(request=JobPrioritySerializer, responses=JobSerializer)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Let the job go before or after others; for administrators."""
        job = self.get_object()
        data = JobPrioritySerializer(data=request.data)
        data.is_valid(raise_exception=True)
        job = services.set_priority(actor=self.actor, job=job, **data.validated_data)
        return Response(JobSerializer(job).data)

    @extend_schema(request=JobCloneSerializer, responses={202: JobSerializer}, parameters=IDEMPOTENT)
    @action(detail=True, methods=["post"])
    def clone(self, request: Request, pk: UUID) -> Response:
        """Do the same once more with other parameters; the job and its result stay."""
        job = self.get_object()
        data = JobCloneSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        made = services.clone(
            actor=self.actor,
            job=job,
            changes=data.validated_data["params"],
            name=data.validated_data["name"],
            idempotency_key=idempotency_key(request),
        )
        shown = Job.objects.for_display().get(pk=made.pk)
        return Response(JobSerializer(shown).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        responses={200: JobEventsSerializer, 400: ErrorResponseSerializer},
        parameters=[
            OpenApiParameter(
                "after",
                {"type": "integer", "minimum": 0, "maximum": 999_999_999},
                description="Only events with a higher number.",
            ),
            OpenApiParameter(
                "kind", str, many=True, enum=JobEvent.Kind.values, description="Only these kinds."
            ),
        ],
    )
    @action(detail=True, pagination_class=None, filter_backends=[])
    def events(self, request: Request, pk: UUID) -> Response:
        """The job's history from ``after`` on: states, log lines, points of its curves."""
        job = self.get_object()
        after = request.query_params.get("after", "0")
        kinds = request.query_params.getlist("kind")
        if not after.isdecimal() or len(after) > 9:
            raise ValidationError({"after": "Use the number of an event."})
        if set(kinds) - set(JobEvent.Kind.values):
            raise ValidationError({"kind": f"Use one of {', '.join(JobEvent.Kind.values)}."})
        rows = job.events.filter(seq__gt=int(after))
        if kinds:
            rows = rows.filter(kind__in=kinds)
        shown = {"events": rows.order_by("seq")[:EVENTS_PER_ANSWER], "last": job.event_seq}
        return Response(JobEventsSerializer(shown).data)


class JobKindsView(APIView):
    """Kinds of jobs and the fields of their forms."""

    @extend_schema(operation_id="job_kinds_list", responses=JobKindSerializer(many=True))
    def get(self, request: Request) -> Response:
        """Every kind with its parameters, defaults, limits and units."""
        return Response(JobKindSerializer(all_kinds(), many=True).data)
