"""Notifications and webhooks over REST."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.permissions import TokenScopes
from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.views import VisibleViewSet
from apps.notifications import services
from apps.notifications.models import Notification, Preference, Webhook
from apps.notifications.serializers import (
    DeliverySerializer,
    MarkReadSerializer,
    NewWebhookSerializer,
    NotificationSerializer,
    PreferenceSerializer,
    UnreadSerializer,
    WebhookCreateSerializer,
    WebhookSerializer,
    WebhookUpdateSerializer,
)
from apps.projects.policies import Action, require

SHOWN_DELIVERIES = 50


class NotificationFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Read or unread ones, or those of a project."""

    unread = django_filters.BooleanFilter(field_name="read_at", lookup_expr="isnull")
    project = django_filters.UUIDFilter(field_name="project_id")


class NotificationViewSet(mixins.ListModelMixin, VisibleViewSet):
    """What the user is told, newest first."""

    token_scopes: ClassVar[TokenScopes] = {"list": None, "unread": None, "mark_read": None}
    model = Notification
    serializer_class = NotificationSerializer
    filterset_class = NotificationFilter

    @extend_schema(responses=UnreadSerializer)
    @action(detail=False, pagination_class=None, filter_backends=[])
    def unread(self, request: Request) -> Response:
        """How many the user has not looked at."""
        return Response({"unread": self.get_queryset().unread().count()})  # type: ignore[attr-defined]

    @extend_schema(request=MarkReadSerializer, responses=UnreadSerializer)
    @action(detail=False, methods=["post"], url_path="mark-read")
    def mark_read(self, request: Request) -> Response:
        """Mark some or all as read; answers how many are left."""
        data = MarkReadSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        services.mark_read(user=self.actor, ids=data.validated_data.get("ids"))
        return Response({"unread": self.get_queryset().unread().count()})  # type: ignore[attr-defined]


class PreferenceView(APIView):
    """Which notifications the user also wants by e-mail."""

    token_scopes: ClassVar[TokenScopes] = {"get": None, "patch": None}

    @extend_schema(operation_id="notification_preferences", responses=PreferenceSerializer)
    def get(self, request: Request) -> Response:
        """As it is."""
        return Response(PreferenceSerializer(self._row(request)).data)

    @extend_schema(
        operation_id="notification_preferences_change",
        request=PreferenceSerializer,
        responses=PreferenceSerializer,
    )
    def patch(self, request: Request) -> Response:
        """Change it."""
        data = PreferenceSerializer(self._row(request), data=request.data, partial=True)
        data.is_valid(raise_exception=True)
        data.save()
        return Response(data.data)

    @staticmethod
    def _row(request: Request) -> Preference:
        user: Any = request.user
        return Preference.objects.filter(user=user).first() or Preference(user=user)


class WebhookFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Those of a project."""

    project = django_filters.UUIDFilter(field_name="project_id")


class WebhookViewSet(mixins.ListModelMixin, VisibleViewSet):
    """Webhooks of the projects the user owns."""

    model = Webhook
    serializer_class = WebhookSerializer
    filterset_class = WebhookFilter

    def get_queryset(self) -> QuerySet[Any]:
        """A list shows those one manages; of others one learns no more than that it is not allowed."""
        rows: Any = super().get_queryset()
        if self.action == "list" and not getattr(self, "swagger_fake_view", False):
            rows = Webhook.objects.managed_by(self.actor)
        return rows  # type: ignore[no-any-return]

    def _managed(self) -> Webhook:
        hook: Webhook = self.get_object()
        require(self.actor, Action.MANAGE, hook.project_id)
        return hook

    @extend_schema(request=WebhookCreateSerializer, responses={201: NewWebhookSerializer})
    def create(self, request: Request) -> Response:
        """Have an address told of events; the secret that signs them is shown this once."""
        data = WebhookCreateSerializer(data=request.data, context=self.get_serializer_context())
        data.is_valid(raise_exception=True)
        hook = services.create_webhook(actor=self.actor, **data.validated_data)
        shown = NewWebhookSerializer({"webhook": hook, "secret": hook.secret})
        return Response(shown.data, status=status.HTTP_201_CREATED)

    @extend_schema(responses=WebhookSerializer)
    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One webhook."""
        hook = self._managed()
        return with_etag(hook, WebhookSerializer(hook).data)

    @extend_schema(request=WebhookUpdateSerializer, responses=WebhookSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Change address, events or switch."""
        hook = self._managed()
        data = WebhookUpdateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        hook = services.update_webhook(
            actor=self.actor, hook=hook, changes=dict(data.validated_data), made_from=if_match(request)
        )
        return with_etag(hook, WebhookSerializer(hook).data)

    def destroy(self, request: Request, pk: UUID) -> Response:
        """Stop telling an address."""
        services.delete_webhook(actor=self.actor, hook=self._managed())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=None, responses={202: DeliverySerializer})
    @action(detail=True, methods=["post"])
    def ping(self, request: Request, pk: UUID) -> Response:
        """Send a message that only tests the way."""
        delivery = services.ping_webhook(actor=self.actor, hook=self._managed())
        return Response(DeliverySerializer(delivery).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(responses=DeliverySerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def deliveries(self, request: Request, pk: UUID) -> Response:
        """The newest messages and what became of them."""
        rows = self._managed().deliveries.all()[:SHOWN_DELIVERIES]
        return Response(DeliverySerializer(rows, many=True).data)
