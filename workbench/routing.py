"""WebSocket routes, behind the origin check and the session, or behind a ticket."""

from __future__ import annotations

from io import BytesIO
from typing import Any
from urllib.parse import parse_qs

from channels.auth import AuthMiddlewareStack
from channels.db import database_sync_to_async
from channels.routing import URLRouter
from channels.security.websocket import WebsocketDenier
from django.contrib.auth.models import AnonymousUser
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.urls import path, re_path

from apps.accounts.tickets import redeem_ticket
from apps.live.consumers import JobsConsumer, LiveConsumer, UnknownRoute

urlpatterns = [
    path("ws/live/<uuid:model_id>/", LiveConsumer.as_asgi(), name="ws-live"),
    path("ws/jobs/", JobsConsumer.as_asgi(), name="ws-jobs"),
    # Without it an unknown path would be an exception in the server's log.
    re_path(r"^.*$", UnknownRoute.as_asgi(), name="ws-unknown"),
]
_routes = URLRouter(urlpatterns)
_sessions = AuthMiddlewareStack(_routes)
_denied = WebsocketDenier.as_asgi()


class _Csrf(CsrfViewMiddleware):
    """What decides whether a page may post."""

    def welcomes(self, scope: dict[str, Any]) -> bool:
        """Whether a page of the origin that a WebSocket names could post here: scheme, name and port count."""
        request = ASGIRequest(
            {**scope, "method": "GET", "scheme": _HTTP.get(scope.get("scheme", ""))}, BytesIO()
        )
        verified: bool = "HTTP_ORIGIN" in request.META and self._origin_verified(request)  # type: ignore[attr-defined]
        return verified


_HTTP = {"ws": "http", "wss": "https"}


async def websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Serve one WebSocket.

    ``?ticket=`` decides alone: programs send no origin, and a page of another site cannot know a ticket, so
    the origin does not matter there. Cookies then do not count.
    """
    query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    if "ticket" not in query:
        application = _sessions if _Csrf(lambda request: HttpResponse()).welcomes(scope) else _denied
        await application(scope, receive, send)
        return
    user = await database_sync_to_async(redeem_ticket)(query["ticket"][0])
    await _routes({**scope, "user": user or AnonymousUser()}, receive, send)
