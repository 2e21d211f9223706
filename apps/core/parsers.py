"""How request bodies are read: JSON of which every string and number can be stored."""

from __future__ import annotations

import math
from typing import Any

from rest_framework import exceptions, parsers, serializers

# Codes and sentences are those of the REST framework's own text fields, which see only some of the strings.
_NULL = ("null_characters_not_allowed", "Null characters are not allowed.")
_HALF = ("surrogate_characters_not_allowed", "Half a surrogate pair is no character: {}.")
_LARGE = ("number_too_large", "The number is too large to be kept.")
_KEY_SHOWN = 80


class JSONParser(parsers.JSONParser):
    """JSON without what a database cannot hold, wherever it is: zero bytes, lone surrogates, and numbers like 1e999."""

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        """The body.

        Raises:
            ParseError: it is no JSON, or nested too deeply.
            ValidationError: it has such a string or number; the error's field is where.
        """
        try:
            data = super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise exceptions.ParseError("JSON parse error - it is nested too deeply.") from error
        _check(data)
        return data


def _check(data: Any) -> None:
    """Every string, key and number, without recursion."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), data)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, str):
            _check_text(value, where)
        elif isinstance(value, float) and not math.isfinite(value):  # what Python reads 1e999 as
            raise _refusal(_LARGE, where)
        elif isinstance(value, dict):
            for key, inner in value.items():
                _check_text(key, where)
                waiting.append(((*where, key), inner))
        elif isinstance(value, list):
            waiting.extend(
                ((*where, str(place)), inner)
                for place, inner in enumerate(value)
                if isinstance(inner, str | dict | list)
                or (isinstance(inner, float) and not math.isfinite(inner))
            )


def _check_text(text: str, where: tuple[str, ...]) -> None:
    if text.isascii():
        if "\0" not in text:
            return
        code, message = _NULL
    elif half := next((c for c in text if "\ud800" <= c <= "\udfff"), None):
        code, message = _HALF[0], _HALF[1].format(f"U+{ord(half):X}")
    elif "\0" in text:
        code, message = _NULL
    else:
        return
    raise _refusal((code, message), where)


def _refusal(what: tuple[str, str], where: tuple[str, ...]) -> serializers.ValidationError:
    code, message = what
    detail: Any = [exceptions.ErrorDetail(message, code)]
    for key in reversed(where):
        detail = {key[:_KEY_SHOWN]: detail}
    return serializers.ValidationError(detail)
