"""The signed-in person and their API tokens."""

from __future__ import annotations

from typing import Any, ClassVar, cast
from uuid import UUID

from allauth.mfa.totp.internal.auth import SECRET_SESSION_KEY
from django.db.models import QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from apps.accounts import services, tokens
from apps.accounts.models import ApiToken, User
from apps.accounts.permissions import TokenScopes
from apps.accounts.scopes import Scope
from apps.accounts.second_factor import MFAAdapter, qr_svg
from apps.accounts.serializers import (
    MeSerializer,
    MeUpdateSerializer,
    TicketSerializer,
    TokenCreateSerializer,
    TokenRotateSerializer,
    TokenSecretSerializer,
    TokenSerializer,
)
from apps.accounts.tickets import issue_ticket
from apps.core.errors import Refused
from apps.core.schema import ErrorResponseSerializer


class MeView(APIView):
    """Who is signed in."""

    token_scopes: ClassVar[TokenScopes] = {"patch": None}

    @extend_schema(operation_id="me", responses=MeSerializer)
    def get(self, request: Request) -> Response:
        """The signed-in person; 401 to everybody else."""
        return Response(MeSerializer(cast("User", request.user)).data)

    @extend_schema(operation_id="me_update", request=MeUpdateSerializer, responses=MeSerializer)
    def patch(self, request: Request) -> Response:
        """Change the own name."""
        user = cast("User", request.user)
        data = MeUpdateSerializer(user, data=request.data, partial=True)
        data.is_valid(raise_exception=True)
        services.update_me(user=user, changes=data.validated_data)
        return Response(MeSerializer(user).data)


class TotpQrView(APIView):
    """The picture an authenticator application reads."""

    token_scopes: ClassVar[TokenScopes] = {"get": None}

    @extend_schema(
        operation_id="me_totp_qr",
        responses={(200, "image/svg+xml"): OpenApiTypes.BINARY, 409: ErrorResponseSerializer},
    )
    def get(self, request: Request) -> HttpResponse:
        """QR code of the secret that is being set up in this session (``account/authenticators/totp`` makes it)."""
        secret = request.session.get(SECRET_SESSION_KEY)
        if not secret:
            raise Refused("nothing_to_set_up", "No secret is being set up.", "Start over.", status=409)
        picture = qr_svg(MFAAdapter().build_totp_url(request.user, secret))
        return HttpResponse(picture, content_type="image/svg+xml", headers={"Cache-Control": "no-store"})


class TokenViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Any]):
    """The person's own API tokens, without their secrets. Tokens themselves cannot get here, but for
    ``current/rotate``."""

    serializer_class = TokenSerializer
    lookup_value_converter = "uuid"
    token_scopes: ClassVar[TokenScopes] = {
        "list": None,
        "create": None,
        "retrieve": None,
        "destroy": None,
        "rotate": None,
        "rotate_current": Scope.READ,
    }

    def get_queryset(self) -> QuerySet[Any]:
        """Tokens that were not revoked."""
        if getattr(self, "swagger_fake_view", False):
            return cast("QuerySet[Any]", ApiToken.objects.none())
        mine: Any = ApiToken.objects.filter(user=cast("User", self.request.user), revoked_at=None)
        return cast("QuerySet[Any]", mine.select_related("project"))

    @extend_schema(request=TokenCreateSerializer, responses={201: TokenSecretSerializer})
    def create(self, request: Request) -> Response:
        """Make a token. Its secret is in this answer and nowhere else."""
        data = TokenCreateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        values = dict(data.validated_data)
        token, secret = tokens.create_token(
            actor=cast("User", request.user), project_id=values.pop("project", None), **values
        )
        return _with_secret(token, secret, status.HTTP_201_CREATED)

    @extend_schema(responses={204: None})
    def destroy(self, request: Request, pk: UUID) -> Response:
        """Revoke the token; connections opened with it close."""
        tokens.revoke_token(actor=cast("User", request.user), token=self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(request=TokenRotateSerializer, responses=TokenSecretSerializer)
    @action(detail=True, methods=["post"])
    def rotate(self, request: Request, pk: UUID) -> Response:
        """Give the token a new secret; the old one ends now."""
        return self._rotate(request, self.get_object())

    @extend_schema(
        operation_id="tokens_rotate_current", request=TokenRotateSerializer, responses=TokenSecretSerializer
    )
    @action(detail=False, methods=["post"], url_path="current/rotate", url_name="rotate-current")
    def rotate_current(self, request: Request) -> Response:
        """The token of this request gets a new secret, for programs that renew their own."""
        if not isinstance(request.auth, ApiToken):
            raise Refused("no_token", "This request came without an API token.", "Send one.", status=409)
        return self._rotate(request, request.auth)

    def _rotate(self, request: Request, token: ApiToken) -> Response:
        data = TokenRotateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        token, secret = tokens.rotate_token(
            actor=cast("User", request.user), token=token, expires_at=data.validated_data.get("expires_at")
        )
        return _with_secret(token, secret, status.HTTP_200_OK)


def _with_secret(token: ApiToken, secret: str, code: int) -> Response:
    shown = TokenSecretSerializer({"token": token, "secret": secret})
    return Response(shown.data, status=code, headers={"Cache-Control": "no-store"})


class TicketView(APIView):
    """WebSockets for programs."""

    token_scopes: ClassVar[TokenScopes] = {"post": Scope.READ}

    @extend_schema(operation_id="ws_tickets_create", request=None, responses={201: TicketSerializer})
    def post(self, request: Request) -> Response:
        """Trade the API token of this request for a ticket that opens one WebSocket within a minute."""
        if not isinstance(request.auth, ApiToken):
            raise Refused(
                "no_token",
                "Tickets are for API tokens.",
                "A browser's session opens WebSockets as it is.",
                status=409,
            )
        text, ticket = issue_ticket(request.auth)
        shown = TicketSerializer({"ticket": text, "expires_at": ticket.expires_at})
        return Response(shown.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})
