"""Graphs over REST."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from django.http import HttpResponse
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import Refused
from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.idempotency import answered_once
from apps.core.views import IDEMPOTENT, VisibleViewSet, get_or_404, idempotency_key
from apps.graphs import services
from apps.graphs.documents import exported, stored_bytes
from apps.graphs.models import Graph, GraphComment
from apps.graphs.serializers import (
    GraphCommentCreateSerializer,
    GraphCommentSerializer,
    GraphCreateSerializer,
    GraphDetailSerializer,
    GraphDocumentSerializer,
    GraphImportSerializer,
    GraphJobSerializer,
    GraphRowSerializer,
    GraphSaveSerializer,
    GraphUpdateSerializer,
)
from apps.projects.policies import Action, require
from apps.registry.views import StateFilter

FORMATS = ("microscope", "attribution_graph")
_FORMAT = OpenApiParameter(
    "format",
    str,
    enum=FORMATS,
    default=FORMATS[0],
    description="microscope: ours; attribution_graph: what circuit-tracer's viewer reads.",
)


class GraphFilter(StateFilter):
    """Graphs by model, origin, and what they explain."""

    model = django_filters.UUIDFilter(field_name="model_id")
    source = django_filters.ChoiceFilter(choices=Graph.Source.choices)
    sae = django_filters.CharFilter(
        field_name="target__sae", label="Fingerprint of the SAE the target is of."
    )
    index = django_filters.NumberFilter(method="filter_index", label="Index of the feature explained.")

    def filter_index(self, queryset: QuerySet[Graph], name: str, value: Decimal) -> QuerySet[Graph]:
        """By the feature; the database compares JSON numbers of one kind."""
        return queryset.filter(target__index=int(value)) if value == int(value) else queryset.none()


class GraphViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Provenance graphs of the user's projects, newest first."""

    model = Graph
    serializer_class = GraphRowSerializer
    filterset_class = GraphFilter

    def get_queryset(self) -> QuerySet[Any]:
        """Visible graphs with what a list names."""
        rows: Any = super().get_queryset()
        return rows.for_display()  # type: ignore[no-any-return]

    def perform_content_negotiation(self, request: Request, force: bool = False) -> Any:
        """The format of an export is that of its file, not of the answer."""
        if "export" in self.action_map.values():
            renderer = self.get_renderers()[0]
            return renderer, renderer.media_type
        return super().perform_content_negotiation(request, force)

    def _answer(self, graph: Graph, code: int = status.HTTP_200_OK) -> Response:
        return with_etag(graph, GraphDetailSerializer(graph).data, code)

    @extend_schema(responses=GraphDetailSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One graph, with what is arranged on its page; the graph itself is its document."""
        return self._answer(self.get_object())

    @extend_schema(request=GraphCreateSerializer, responses={202: GraphJobSerializer}, parameters=IDEMPOTENT)
    def create(self, request: Request) -> Response:
        """Explain a target: a job computes the graph and measures its edges on the running model."""
        data = GraphCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        chosen = {name: values.pop(name) for name in ("hops", "parents", "shown", "verify")}
        graph, job = services.start_graph(
            actor=self.actor, params=chosen, idempotency_key=idempotency_key(request), **values
        )
        answer = GraphJobSerializer({"graph": graph, "job": job})
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(request=GraphSaveSerializer, responses={201: GraphDetailSerializer}, parameters=IDEMPOTENT)
    @action(detail=False, methods=["post"])
    @answered_once
    def save(self, request: Request) -> Response:
        """Keep a graph that was made in a live session; it is checked first."""
        data = GraphSaveSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        values = data.validated_data
        graph = services.keep_graph(
            actor=self.actor,
            project=values["model"].project,
            source=Graph.Source.LIVE,
            **values,
        )
        return self._answer(graph, status.HTTP_201_CREATED)

    @extend_schema(
        operation_id="graphs_import",
        request=GraphImportSerializer,
        responses={201: GraphDetailSerializer},
        parameters=IDEMPOTENT,
    )
    @action(detail=False, methods=["post"], url_path="import", url_name="import")
    @answered_once
    def bring_in(self, request: Request) -> Response:
        """Bring in a graph of a file; it is checked, and shown with what it says about itself."""
        data = GraphImportSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        graph = services.import_graph(actor=self.actor, **data.validated_data)
        return self._answer(graph, status.HTTP_201_CREATED)

    @extend_schema(request=GraphUpdateSerializer, responses=GraphDetailSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change its name, its note, or what is arranged on its page."""
        graph = self.get_object()
        data = GraphUpdateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        services.update_graph(
            actor=self.actor, graph=graph, changes=data.validated_data, made_from=if_match(request)
        )
        return self._answer(self.get_object())

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Remove a graph with its comments."""
        services.delete_graph(actor=self.actor, graph=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(responses=GraphDocumentSerializer)
    @action(detail=True)
    def document(self, request: Request, pk: UUID) -> HttpResponse:
        """The whole graph: tokens, nodes, edges with their verdicts, components, accounts."""
        return HttpResponse(stored_bytes(self.get_object()), content_type="application/json")

    @extend_schema(responses={(200, "application/json"): OpenApiTypes.OBJECT}, parameters=[_FORMAT])
    @action(detail=True, filter_backends=[], pagination_class=None)
    def export(self, request: Request, pk: UUID) -> HttpResponse:
        """Download the graph as a file, in our format or as an attribution graph for circuit-tracer's viewer."""
        graph = self.get_object()
        require(self.actor, Action.DOWNLOAD, graph.project_id)
        wanted = request.query_params.get("format", FORMATS[0])
        if wanted not in FORMATS:
            raise Refused(
                "unknown_format", f"There is no format '{wanted[:40]}'.", f"Use {' or '.join(FORMATS)}."
            )
        response = HttpResponse(exported(graph, wanted), content_type="application/json")
        name = "".join(c if c.isalnum() or c in "-_ " else "_" for c in graph.name)[:80]
        response["Content-Disposition"] = content_disposition_header(True, f"{name}.json") or "attachment"
        return response

    @extend_schema(methods=["GET"], responses=GraphCommentSerializer(many=True))
    @extend_schema(
        methods=["POST"], request=GraphCommentCreateSerializer, responses={201: GraphCommentSerializer}
    )
    @action(detail=True, methods=["get", "post"], pagination_class=None, filter_backends=[])
    def comments(self, request: Request, pk: UUID) -> Response:
        """What people say about the graph, oldest first."""
        graph = self.get_object()
        if request.method == "GET":
            rows = graph.comments.select_related("author")
            return Response(GraphCommentSerializer(rows, many=True).data)
        data = GraphCommentCreateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        comment = services.add_comment(actor=self.actor, graph=graph, text=data.validated_data["text"])
        return Response(GraphCommentSerializer(comment).data, status=status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    @action(detail=True, methods=["delete"], url_path="comments/<uuid:comment_id>", url_name="comment")
    def uncomment(self, request: Request, pk: UUID, comment_id: UUID) -> Response:
        """Take back a comment."""
        rows = GraphComment.objects.select_related("graph", "author").filter(graph=self.get_object())
        services.delete_comment(actor=self.actor, comment=get_or_404(rows, pk=comment_id))
        return Response(status=status.HTTP_204_NO_CONTENT)
