"""Middleware of the site: static files under ASGI, one log line per request, content security policy."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from whitenoise.middleware import WhiteNoiseMiddleware

from apps.core.errors import UNSTORABLE, error_body, is_unstorable
from apps.core.ids import uuid7
from apps.core.metrics import HTTP_SECONDS

log = structlog.get_logger("workbench.request")

GetResponse = Callable[[HttpRequest], HttpResponseBase]

# Styles are allowed inline because the component library sets them; scripts are not.
POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)


class StaticFiles(WhiteNoiseMiddleware):  # type: ignore[misc]
    """WhiteNoise for ASGI: static files are small, so they are answered whole.

    WhiteNoise itself answers with a ``FileResponse``, which Django warns about and reads whole anyway.
    """

    @staticmethod
    def serve(static_file: Any, request: HttpRequest) -> HttpResponse:
        """The file, its 304 or its range."""
        found = static_file.get_response(request.method, request.META)
        body = b""
        if found.file is not None:
            with found.file:
                body = found.file.read()
        response = HttpResponse(body, status=int(found.status))
        del response["Content-Type"]
        for name, value in found.headers:
            response[name] = value
        return response


class StorableText:
    """Characters that nothing can store are the sender's mistake, also in views outside the REST framework."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request."""
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        """A 400 for such a string, nothing for other failures."""
        if not is_unstorable(exception):
            return None
        return JsonResponse(error_body("invalid", UNSTORABLE, kind="validation_error"), status=400)


class RequestLog:
    """Gives every request an id, which its log lines carry and the response repeats."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request and log how long it took."""
        request_id = uuid7().hex
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        started = time.perf_counter()
        response = self.get_response(request)
        seconds = time.perf_counter() - started
        HTTP_SECONDS.labels(request.method, response.status_code).observe(seconds)
        milliseconds = round(seconds * 1000, 1)
        response["X-Request-ID"] = request_id
        level = "error" if response.status_code >= 500 else "info"
        getattr(log, level)(
            "request", method=request.method, path=request.path, status=response.status_code, ms=milliseconds
        )
        return response


class ContentSecurityPolicy:
    """Sets the policy on every response that does not bring its own."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request with the header."""
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
