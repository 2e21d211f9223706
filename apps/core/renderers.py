"""JSON through msgspec: several times faster than the standard library on long lists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from django.utils.functional import Promise
from rest_framework.renderers import BaseRenderer
from rest_framework.utils.encoders import JSONEncoder


class JSONRenderer(BaseRenderer):
    """Renders ``application/json``; numbers that JSON cannot say become null."""

    media_type = "application/json"
    format = "json"
    charset = None

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        """The data as bytes; nothing for an answer without a body."""
        return b"" if data is None else msgspec.json.encode(data, enc_hook=_other)


def _other(value: Any) -> Any:
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, list):
        return list(value)  # ErrorDetail lists and ReturnList are subclasses msgspec does not know
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, str):
        return str.__str__(value)
    return JSONEncoder().default(value)
