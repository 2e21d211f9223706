"""Changes made from an old state are refused: one ETag and one If-Match for everything people edit.

A model that people edit says in ``EDITED`` what of it they change. Its ETag is the version, where versions
are counted, or a digest of these values: states that jobs and machines write change nothing about it.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, TypeVar

import msgspec
from django.db.models import Model
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.core.errors import Refused

IF_MATCH = [
    OpenApiParameter(
        "If-Match",
        str,
        OpenApiParameter.HEADER,
        description="The ETag the change was made from; 412, with the ETag of now, when somebody changed it since.",
    )
]
_ETAG = re.compile(r'^(?:W/)?("[0-9a-z]{1,32}")$')  # proxies that compress make ETags weak

Row = TypeVar("Row", bound=Model)


class Conflict(Refused):
    """Somebody else was faster; the answer carries the ETag of what is there now."""

    def __init__(self, what: str, etag: str) -> None:
        super().__init__(
            "version_conflict",
            f"Somebody changed this {what} since you loaded it: its version is {etag.strip(chr(34))} by now.",
            "Load it again and repeat the change.",
            status=412,
        )
        self.headers = {"ETag": etag}


def etag_of(row: Model) -> str:
    """The ETag of a row that people edit, in its quotes."""
    if hasattr(row, "version"):
        return f'"{row.version}"'
    edited: tuple[str, ...] = row.EDITED  # type: ignore[attr-defined]
    values = msgspec.json.encode([getattr(row, name) for name in edited])
    return f'"{hashlib.sha256(values).hexdigest()[:16]}"'


def if_match(request: Request) -> str | None:
    """The ETag in ``If-Match``; None when the header is absent or ``*``.

    Raises:
        Refused: ``bad_if_match``.
    """
    header = request.headers.get("If-Match", "*").strip()
    if header == "*":
        return None
    found = _ETAG.match(header)
    if found is None:
        raise Refused("bad_if_match", "If-Match is no ETag of this API.", "Send one as it came.", status=400)
    return found[1]


def lock_unchanged(row: Row, made_from: str | None, **related: Any) -> Row:
    """The row as it is now, locked until the transaction ends: two people may be saving at once.

    Args:
        made_from: the ETag the change was made from; None takes whatever is there.

    Raises:
        Conflict: it is another one by now.
    """
    now = type(row)._default_manager.select_for_update().get(pk=row.pk)
    if made_from is not None and made_from != etag_of(now):
        raise Conflict(str(row._meta.verbose_name), etag_of(now))
    return now


def with_etag(row: Model, data: Any, status: int = 200) -> Response:
    """An answer about one row."""
    return Response(data, status=status, headers={"ETag": etag_of(row)})


class EtagField(serializers.CharField):
    """The ETag among the other fields, for those who change what they found in a list."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(source="*", read_only=True, help_text="For If-Match.", **kwargs)

    def to_representation(self, value: Any) -> str:
        """Of the row."""
        return etag_of(value)
