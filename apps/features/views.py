"""Features over REST."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID

import django_filters
from django.db.models import ExpressionWrapper, F, FloatField, QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.generics import get_object_or_404
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.pagination import KeysetPages
from apps.core.views import IDEMPOTENT, VisibleViewSet, idempotency_key
from apps.features import services
from apps.features.details import read_details, related_indices
from apps.features.models import Analysis, Feature
from apps.features.serializers import FeatureDetailSerializer, FeatureSerializer, FeatureUpdateSerializer
from apps.saes.models import Sae
from apps.saes.serializers import MeasureSerializer, SaeJobSerializer


class DensityFilter(django_filters.NumberFilter):  # type: ignore[misc]
    """A bound on the density that leaves the choice of the index to the ordering.

    A database that knows no better takes the index of densities, looks up thousands of rows and sorts them, where
    the index of the ordering leads to the page after some hundred entries. On a sum it has no choice.
    """

    def filter(self, qs: QuerySet[Feature], value: Decimal | None) -> QuerySet[Feature]:
        """Features on one side of the bound."""
        ordering = self.parent.request.query_params.get("ordering", "").removeprefix("-")
        if value is None or ordering == "density":
            found: QuerySet[Feature] = super().filter(qs, value)
            return found
        density = ExpressionWrapper(F("density") + 0.0, output_field=FloatField())
        return qs.alias(any_density=density).filter(**{f"any_density__{self.lookup_expr}": float(value)})


class FeatureFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Features of one SAE, which must be named."""

    sae = django_filters.UUIDFilter(field_name="sae_id", required=True)
    index = django_filters.NumberFilter()
    dead = django_filters.BooleanFilter()
    starred = django_filters.BooleanFilter()
    labelled = django_filters.BooleanFilter(method="filter_labelled", label="Only with a label, or without.")
    min_density = DensityFilter(field_name="density", lookup_expr="gte")
    max_density = DensityFilter(field_name="density", lookup_expr="lte")
    search = django_filters.CharFilter(
        method="filter_search", label="Text in the label, the tokens it fires on, or those it promotes."
    )

    class Meta:
        model = Feature
        fields = ()

    def filter_labelled(self, queryset: QuerySet[Feature], name: str, value: bool) -> QuerySet[Feature]:
        """With or without a label."""
        return queryset.exclude(label="") if value else queryset.filter(label="")

    def filter_search(self, queryset: Any, name: str, value: str) -> QuerySet[Feature]:
        """By text."""
        found: QuerySet[Feature] = queryset.matching(value)
        return found


class FeatureViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Features of the user's SAEs."""

    model = Feature
    serializer_class = FeatureSerializer
    filterset_class = FeatureFilter
    pagination_class = KeysetPages
    ordering_fields = ("index", "density", "max_activation", "p999")
    tie_breaker = "index"
    scanning_filters = ("search",)

    def get_queryset(self) -> QuerySet[Any]:
        """Visible features. A list is about one SAE: whether that is visible is asked once, not per row."""
        if getattr(self, "swagger_fake_view", False) or self.action != "list":
            rows: QuerySet[Any] = super().get_queryset()
            return rows if self.action == "list" else rows.select_related("sae")
        try:
            wanted = UUID(self.request.query_params.get("sae", ""))
        except ValueError:
            return Feature.objects.none()
        if not Sae.objects.visible_to(self.actor).filter(pk=wanted).exists():
            return Feature.objects.none()
        return Feature.objects.filter(sae_id=wanted)

    @extend_schema(responses=FeatureDetailSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One feature with its examples, and the features most like it."""
        feature: Feature = self.get_object()
        analysis = Analysis.objects.select_related("artifact").get(sae_id=feature.sae_id)
        details = read_details(analysis, feature)
        shown = {
            "feature": feature,
            "sae": feature.sae,
            "details": details,
            "analyses": analysis.manifest.get("analyses", []),
            "related": Feature.objects.filter(sae_id=feature.sae_id, index__in=related_indices(details)),
        }
        return with_etag(feature, FeatureDetailSerializer(shown).data)

    @extend_schema(request=FeatureUpdateSerializer, responses=FeatureSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Label or star a feature."""
        feature: Feature = self.get_object()
        data = FeatureUpdateSerializer(feature, data=request.data, partial=True)
        data.is_valid(raise_exception=True)
        feature = services.update_feature(
            actor=self.actor, feature=feature, changes=data.validated_data, made_from=if_match(request)
        )
        return with_etag(feature, FeatureSerializer(feature).data)


class AnalyseView(APIView):
    """Starts the analysis of an SAE."""

    @extend_schema(
        operation_id="saes_analyse",
        request=MeasureSerializer,
        responses={202: SaeJobSerializer},
        parameters=IDEMPOTENT,
    )
    def post(self, request: Request, pk: UUID) -> Response:
        """Describe every feature of the SAE: when it fires, on what, what it promotes."""
        sae = get_object_or_404(Sae.objects.visible_to(request.user).for_display(), pk=pk)
        data = MeasureSerializer(data=request.data, context={"request": request})
        data.is_valid(raise_exception=True)
        job = services.start_analysis(
            actor=request.user, sae=sae, idempotency_key=idempotency_key(request), **data.validated_data
        )
        return Response(SaeJobSerializer({"sae": sae, "job": job}).data, status=status.HTTP_202_ACCEPTED)
