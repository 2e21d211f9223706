"""A request that is sent again gets the answer of the first: for what makes something without a job.

Requests that start jobs keep their key with the job, in the database; these keep the answer for a day.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import Refused
from apps.core.views import idempotency_key

KEPT_SECONDS = 24 * 3600
# Longer than any request takes; a process that died in between blocks its key no longer than this.
_PENDING_SECONDS = 120
_HEADERS = ("ETag", "Location")


class Remembered(NamedTuple):
    """A request by its body's digest, and its answer once there is one (``status`` is 0 before)."""

    body: str
    status: int = 0
    data: Any = None
    headers: dict[str, str] | None = None


Handler = TypeVar("Handler", bound=Callable[..., Response])


def answered_once(handler: Handler) -> Handler:
    """A handler that acts once per person and ``Idempotency-Key``; without a key, every time.

    What is refused is not remembered: the same key may be tried again.

    Raises:
        Refused: ``idempotency_key_reused`` (422) for the same key with another body, ``request_in_progress``
            (409) while the first one is being answered.
    """

    @functools.wraps(handler)
    def wrapped(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = idempotency_key(request)
        if not key:
            return handler(view, request, *args, **kwargs)
        place = _digest(["answer", str(request.user.pk), request.method, request.path, key])
        body = _digest([repr(request.data)])
        if not cache.add(place, Remembered(body), _PENDING_SECONDS):
            return _again(cache.get(place) or Remembered(body), body)
        try:
            answer = handler(view, request, *args, **kwargs)
        except BaseException:
            cache.delete(place)
            raise
        if answer.status_code < 400:
            kept = {name: answer[name] for name in _HEADERS if name in answer}
            cache.set(place, Remembered(body, answer.status_code, answer.data, kept), KEPT_SECONDS)
        else:
            cache.delete(place)
        return answer

    return cast("Handler", wrapped)


def _again(first: Remembered, body: str) -> Response:
    if first.body != body:
        raise Refused(
            "idempotency_key_reused",
            "This Idempotency-Key came with another request before.",
            "Use a new key for a new request.",
        )
    if not first.status:
        raise Refused(
            "request_in_progress", "The same request is being answered.", "Ask again in a moment.", status=409
        )
    return Response(
        first.data, status=first.status, headers={**(first.headers or {}), "Idempotent-Replayed": "true"}
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
