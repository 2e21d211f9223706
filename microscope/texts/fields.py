"""Which field of a row holds its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from microscope.errors import MicroscopeError

DEFAULT = "text"
# What the text is called where it is not called 'text'; and what rows are wrapped in.
_USUAL = (
    *("content", "contents", "document", "body", "article", "passage", "sentence", "story", "transcript"),
    *("raw_content", "raw_text", "full_text", "text_content", "page_content"),
)
_WRAPPERS = ("data", "row", "doc", "fields", "record", "_source", *_USUAL)
_SHOWN = 8

Path = tuple[str, ...]


class TextField:
    """Where rows of a file have their text, decided at the first row and kept for all.

    A field that was asked for is taken as it is; dots lead into nested rows. The default, ``text``,
    stands for the usual names as well, as long as exactly one of them is there.
    """

    def __init__(self, wanted: str, name: str) -> None:
        self._wanted, self._name = wanted, name
        self._path: Path | None = None

    @property
    def path(self) -> Path:
        """Keys from the row to its text."""
        assert self._path is not None, "no row was looked at"
        return self._path

    def settle(self, row: Mapping[str, Any], where: str) -> None:
        """Decide by a row, unless it is decided.

        Raises:
            MicroscopeError: ``no_text_field``, also where several fields may be meant.
        """
        if self._path is None:
            self._path = self._found(row, where)

    def of(self, row: Any, where: str) -> str | None:
        """The text of a row; None where it is null.

        Raises:
            MicroscopeError: ``no_text_field`` saying where.
        """
        if row is None or isinstance(row, str):
            return row
        if not isinstance(row, dict):
            raise self.missing(where, f"it is {_kind(row)}")
        self.settle(row, where)
        found: Any = row
        for key in self.path:
            if not isinstance(found, dict) or key not in found:
                raise self.missing(where, _names(row))
            found = found[key]
            if found is None:
                return None
        if not isinstance(found, str):
            raise self.missing(where, f"'{'.'.join(self.path)}' is {_kind(found)}")
        return found

    def missing(self, where: str, found: str) -> MicroscopeError:
        """The refusal of a row without a text."""
        wanted = ".".join(self._path) if self._path else self._wanted
        return MicroscopeError(
            "no_text_field",
            f"{self._name}, {where} has no text in '{wanted}' ({found}).",
            "Name the field that holds the text with --text-field; dots lead into nested ones.",
        )

    def _found(self, row: Mapping[str, Any], where: str) -> Path:
        if self._wanted in row:
            return (self._wanted,)
        dotted = tuple(self._wanted.split("."))
        if len(dotted) > 1 and _leads(row, dotted):
            return dotted
        if self._wanted != DEFAULT:
            raise self.missing(where, _names(row))
        candidates = _candidates(row)
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            names = " and ".join(f"'{'.'.join(path)}'" for path in candidates)
            raise self.missing(where, f"it may be in {names}")
        raise self.missing(where, _names(row))


def _candidates(row: Mapping[str, Any]) -> list[Path]:
    """Fields that hold the text by their name, in whatever case: 'text' itself, the usual ones, or those of a wrapped row."""
    text: list[Path] = [(key,) for key, value in row.items() if key.lower() == DEFAULT and _textual(value)]
    usual: list[Path] = [(key,) for key, value in row.items() if key.lower() in _USUAL and _textual(value)]
    if text or usual:
        return text or usual
    return [
        (key, *path)
        for key, value in row.items()
        if key.lower() in _WRAPPERS and isinstance(value, dict)
        for path in _candidates(value)
    ]


def _textual(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _leads(row: Any, path: Path) -> bool:
    for key in path:
        if not isinstance(row, dict) or key not in row:
            return False
        row = row[key]
    return True


def _names(row: Mapping[str, Any]) -> str:
    shown = sorted(map(str, row))
    more = ", …" if len(shown) > _SHOWN else ""
    return f"found: {', '.join(name[:80] for name in shown[:_SHOWN])}{more}" if shown else "it is empty"


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return "no text"
