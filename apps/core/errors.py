"""One error shape for the whole API, with the code, sentence and hint the engine uses too."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from django.db import DataError, IntegrityError, transaction
from django.db.models import ProtectedError
from django.http import HttpRequest, JsonResponse

from microscope.errors import MicroscopeError as MicroscopeError


class Refused(MicroscopeError):
    """A request the portal understands and does not carry out.

    Args:
        code: stable snake_case identifier.
        message: one sentence that says what is wrong, with the numbers involved.
        hint: what to do about it.
        status: HTTP status of the answer.
        attr: the field of the request it is about.

    ``wait`` is after how many seconds the same request may succeed, where that is known (429).
    """

    wait: int | None = None

    def __init__(
        self, code: str, message: str, hint: str = "", *, status: int = 422, attr: str | None = None
    ) -> None:
        super().__init__(code, message, hint)
        self.status = status
        self.attr = attr


class NotVisible(Refused):
    """The thing does not exist, or exists where the user may not look: the two are told apart nowhere."""

    def __init__(self, what: str = "Not found", *, attr: str | None = None) -> None:
        super().__init__("not_found", f"{what.rstrip('.')}.", status=404, attr=attr)


class Forbidden(Refused):
    """The thing is visible to the user, but the action is not theirs."""

    def __init__(self, message: str, hint: str = "", *, code: str = "permission_denied") -> None:
        super().__init__(code, message, hint, status=403)


def unknown_reference(attr: str) -> Refused:
    """A foreign key in a request that points nowhere the user may point: one answer for every reason."""
    return Refused(
        "does_not_exist", "There is no such object in this project.", "Check the id.", status=400, attr=attr
    )


def error_body(code: str, detail: str, *, kind: str = "client_error", hint: str = "") -> dict[str, Any]:
    """The same shape, for answers given outside the REST framework."""
    return {"type": kind, "errors": [{"code": code, "detail": detail, "attr": None, "hint": hint}]}


def not_found(request: HttpRequest, exception: Exception | None) -> JsonResponse:
    """Answers paths no view knows; browser pages never get here because the application takes them."""
    return JsonResponse(error_body("not_found", "There is nothing at this address."), status=404)


def server_error(request: HttpRequest) -> JsonResponse:
    """Answers a failure nobody handled; what failed is in the server's log under the request id.

    Django calls it where the failure was caught. A full disk and a database that is away end here wherever they were
    noticed: in a view, in a middleware, or while the session was stored.
    """
    from apps.core.outages import outage_of

    outage = outage_of(sys.exc_info()[1])
    if outage is None:
        return JsonResponse(
            error_body("error", "The server failed to answer.", kind="server_error"), status=500
        )
    body = error_body(outage.code, outage.message, kind="server_error", hint=outage.hint)
    return JsonResponse(body, status=outage.status, headers=outage.headers)


UNSTORABLE = "The request has characters that cannot be stored: a zero byte, or half a surrogate pair."


TOO_LARGE = "The request has a number that is too large to be stored."


def is_too_large(error: BaseException) -> bool:
    """Whether a database refused a whole number of the request: one beyond its column, or beyond 64 bits."""
    if isinstance(error, OverflowError):
        return "SQLite INTEGER" in str(error)
    return isinstance(error, DataError) and "out of range" in str(error)


def is_unstorable(error: BaseException) -> bool:
    """Whether a database or the file system refused a string of the request for its characters.

    Bodies are looked at when they are read; this is for addresses, headers and forms.
    """
    if isinstance(error, UnicodeEncodeError):
        return error.reason == "surrogates not allowed"
    return isinstance(error, ValueError) and str(error).startswith(
        ("A string literal cannot contain NUL", "embedded null", "PostgreSQL text fields cannot contain NUL")
    )


@contextlib.contextmanager
def refuse_taken_name(name: str, what: str) -> Iterator[None]:
    """Around the insert or update of a row whose name must be unique in its project.

    Raises:
        Refused: ``name_taken``.
    """
    try:
        with transaction.atomic():
            yield
    except IntegrityError as error:
        raise Refused(
            "name_taken",
            f"This project has a {what} called '{name}' already.",
            "Choose another name.",
            status=400,
            attr="name",
        ) from error


@contextlib.contextmanager
def refuse_if_in_use(what: str) -> Iterator[None]:
    """Around the deletion of a row others are made from.

    Raises:
        Refused: ``in_use`` with what is in the way.
    """
    try:
        with transaction.atomic():
            yield
    except ProtectedError as error:
        users = sorted({str(row._meta.verbose_name) for row in error.protected_objects})
        raise Refused(
            "in_use", f"The {what} is used by a {' and a '.join(users)}.", "Delete those first.", status=409
        ) from error
