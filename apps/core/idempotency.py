"""A request that is sent again gets the answer of the first: for what makes something without a job.

Requests that start jobs keep their key with the job, in the database; these keep the answer for a day. Either is
repeated only to somebody who may still see what was made.
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

from apps.core.errors import NotVisible, Refused
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
    """A handler of a :class:`VisibleViewSet` that acts once per person and ``Idempotency-Key``; without a key, every
    time. The ``id`` of its answer is the row it has made.

    What is refused is not remembered: the same key may be tried again.

    Raises:
        Refused: ``idempotency_key_reused`` (422) for the same key with another body, ``request_in_progress``
            (409) while the first one is being answered.
        NotVisible: what the first one has made is gone, or the person (or their API token) may not see it any more.
    """

    @functools.wraps(handler)
    def wrapped(view: Any, request: Request, *args: Any, **kwargs: Any) -> Response:
        key = idempotency_key(request)
        if not key:
            return handler(view, request, *args, **kwargs)
        entry = _digest(["answer", str(request.user.pk), request.method, request.path, key])
        body = _digest([repr(request.data)])
        if not cache.add(entry, Remembered(body), _PENDING_SECONDS):
            return _again(view, cache.get(entry) or Remembered(body), body)
        try:
            answer = handler(view, request, *args, **kwargs)
        except BaseException:
            cache.delete(entry)
            raise
        if answer.status_code < 400:
            kept = {name: answer[name] for name in _HEADERS if name in answer}
            cache.set(entry, Remembered(body, answer.status_code, answer.data, kept), KEPT_SECONDS)
        else:
            cache.delete(entry)
        return answer

    return cast("Handler", wrapped)


def replayed(row: Any, actor: Any) -> Any:
    """What a key has made before, if the actor may still see it.

    Args:
        row: of a model whose manager has ``visible_to``.

    Raises:
        NotVisible: it is gone or hidden.
    """
    if not type(row)._default_manager.visible_to(actor).filter(pk=row.pk).exists():
        raise gone()
    return row


def reused() -> Refused:
    """The refusal of a key that came with another request."""
    return Refused(
        "idempotency_key_reused",
        "This Idempotency-Key came with another request before.",
        "Use a new key for a new request.",
    )


def gone() -> NotVisible:
    """The refusal of a key whose result cannot be shown again."""
    return NotVisible("What this Idempotency-Key has made is not there any more")


def _again(view: Any, first: Remembered, body: str) -> Response:
    if first.body != body:
        raise reused()
    if not first.status:
        raise Refused(
            "request_in_progress", "The same request is being answered.", "Ask again in a moment.", status=409
        )
    if not view.model._default_manager.visible_to(view.request.user).filter(pk=first.data["id"]).exists():
        raise gone()
    return Response(
        first.data, status=first.status, headers={**(first.headers or {}), "Idempotent-Replayed": "true"}
    )


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()
