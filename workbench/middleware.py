"""Middleware of the site: static files under ASGI, one log line per request, content security policy."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from rest_framework.exceptions import APIException
from whitenoise.middleware import WhiteNoiseMiddleware

from apps.core.errors import UNSTORABLE, error_body, is_unstorable
from apps.core.ids import uuid7
from apps.core.metrics import HTTP_SECONDS
from apps.core.parsers import JSONParser

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


class SignInBodies:
    """Reads what is sent to the addresses of signing in as the REST interface reads bodies.

    Their own reader fails on deep nesting, on numbers of thousands of digits, and on text that no database holds.
    """

    # Answered to a form of the page, which the browser must leave with it.
    _FORM = "/auth/provider/redirect"

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request, or say what is wrong with its body."""
        ours = request.path.startswith("/_allauth/") and not request.path.endswith(self._FORM)
        if ours and request.method != "GET" and request.body:
            try:
                JSONParser().parse(io.BytesIO(request.body), "application/json", {"encoding": "utf-8"})
            except APIException as error:
                code = str(next(_leaves(error.get_codes()), "parse_error"))
                return JsonResponse(error_body(code, "The body cannot be read as JSON."), status=400)
        return self.get_response(request)


def _leaves(codes: Any) -> Iterator[Any]:
    if isinstance(codes, dict | list):
        for inner in codes.values() if isinstance(codes, dict) else codes:
            yield from _leaves(inner)
    else:
        yield codes


class ContentSecurityPolicy:
    """Sets the policy on every response that does not bring its own."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer the request with the header."""
        response = self.get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response
