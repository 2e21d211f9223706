"""One file of text: what kind it is by its content and name, and its documents."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from microscope.errors import MicroscopeError
from microscope.quarantine.content import refuse_foreign
from microscope.texts.decoding import ACCEPTED, decoded, encoding_of, sound
from microscope.texts.fields import DEFAULT, TextField
from microscope.texts.json_values import MAX_VALUE, json_values, looks_like_json
from microscope.texts.pieces import LARGE_TEXT, pieces
from microscope.texts.tables import arrow_texts, csv_texts, parquet_texts

Kind = Literal["text", "json", "csv", "parquet", "arrow"]
PROSE = frozenset({".txt", ".text", ".md", ".markdown"})
JSON = frozenset({".json", ".jsonl", ".ndjson", ".jl", ".jsonlines"})
CSV = frozenset({".csv", ".tsv"})
ARROW = frozenset({".arrow", ".feather", ".ipc"})
SUFFIXES = PROSE | JSON | CSV | ARROW | {".parquet"}
_HEAD = 65536
# What a JSON object wraps its rows in where it is all of a file.
_ROWS = (
    *("data", "rows", "records", "documents", "docs", "examples", "items", "entries", "texts", "corpus"),
    *("articles", "results", "train"),
)


class TextFile:
    """A file as a stream of documents, from its first byte each time it is iterated.

    * Plain text is one document; above 32 MB it is cut into pieces of about a hundred thousand characters.
    * JSON is rows: a list of them, one a line, or one after another. Rows are texts, or objects with a
      field that holds the text. An object that is all of the file is one row, a table of columns, or
      wraps a list of rows.
    * CSV, Parquet and Arrow have a column of texts.

    Rows whose text is null are left out. ``position`` says how many bytes were read.

    Args:
        path: the file.
        text_field: where rows have their text; ``text`` stands for the other usual names, too.
        name: what the file is called, by default its own name; its suffix counts.

    Raises:
        MicroscopeError: ``corpus_empty``, ``wrong_file_type`` or ``pickle_refused``; iterating it
            ``bad_corpus_file``, ``wrong_file_type`` or ``no_text_field``, with the line or row.
    """

    def __init__(self, path: Path, text_field: str = DEFAULT, name: str | None = None) -> None:
        self.path, self.name = path, name or path.name
        self.position = 0
        self._wanted = text_field
        try:
            with path.open("rb") as stream:
                head = stream.read(_HEAD)
            self.size = path.stat().st_size
        except OSError as error:
            raise self._unreadable(error) from error
        if not head:
            raise MicroscopeError("corpus_empty", f"{self.name} is empty.", "Give files with text in them.")
        if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[:3] == b"BZh":
            raise MicroscopeError(
                "wrong_file_type", f"{self.name} is compressed.", "Unpack it first (gunzip, unzstd, bunzip2)."
            )
        refuse_foreign(path, self.name, ACCEPTED)
        self.kind = self._kind(head)

    @property
    def suffix(self) -> str:
        """A suffix that says what the file is, its own where that does."""
        own = Path(self.name).suffix.lower()
        match self.kind:
            case "text":
                return ".txt"
            case "json":
                return own if own in JSON else ".jsonl"
            case "csv":
                return own
            case "arrow":
                return ".arrow"
            case "parquet":
                return ".parquet"

    def __iter__(self) -> Iterator[str]:
        self.position = 0
        try:
            for text in self._texts():
                if text is None:
                    continue
                if len(text) > LARGE_TEXT:
                    yield from pieces((sound(text),))
                else:
                    yield sound(text)
        except OSError as error:
            raise self._unreadable(error) from error

    def _kind(self, head: bytes) -> Kind:
        suffix = Path(self.name).suffix.lower()
        if head.startswith(b"PAR1") or suffix == ".parquet":
            return "parquet"
        if head.startswith(b"ARROW1") or suffix in ARROW:
            return "arrow"
        if suffix in JSON:
            return "json"
        if suffix in CSV:
            return "csv"
        encoding, mark = encoding_of(head)
        text = head[mark:].decode(encoding, "ignore")
        like = looks_like_json(text, whole=len(head) < _HEAD, prose=suffix in PROSE)
        return "json" if like else "text"

    def _texts(self) -> Iterator[str | None]:
        field = TextField(self._wanted, self.name)
        match self.kind:
            case "text":
                return self._plain()
            case "json":
                return self._rows(field)
            case "csv":
                return csv_texts(self._lines(), self.name, field, tabs=self.suffix == ".tsv")
            case "parquet":
                return parquet_texts(self.path, self.name, field, self._at)
            case "arrow":
                return arrow_texts(self.path, self.name, field, self._at)

    def _at(self, position: int) -> None:
        self.position = position

    def _decoded(self) -> Iterator[str]:
        return decoded(self.path, self.name, self._at)

    def _plain(self) -> Iterator[str]:
        if self.size > LARGE_TEXT:
            yield from pieces(self._decoded())
        else:
            yield "".join(self._decoded())

    def _rows(self, field: TextField) -> Iterator[str | None]:
        values = json_values(self._decoded(), self.name)
        first = list(itertools.islice(values, 2))
        if len(first) == 1 and isinstance(first[0][1], dict):
            yield from self._alone(first[0][1], field)
            return
        for line, value in itertools.chain(first, values):
            yield field.of(value, f"line {line}")

    def _alone(self, row: dict[str, Any], field: TextField) -> Iterator[str | None]:
        """An object that is all of the file."""
        wrapped = [key for key in row if key.lower() in _ROWS and isinstance(row[key], list)]
        if self._wanted not in row and len(wrapped) == 1:
            for number, inner in enumerate(row[wrapped[0]], 1):
                yield field.of(inner, f"row {number} of '{wrapped[0]}'")
            return
        # As a table of columns it has lists, or objects from a row's number to its cell.
        cells = {key: _cells(value) for key, value in row.items()}
        if not any(cell is not None for cell in cells.values()) or _is_row(row, self._wanted):
            yield field.of(row, "its object")
            return
        field.settle(
            {key: 0 if cell is None else _example(cell) for key, cell in cells.items()}, "its object"
        )
        column = cells.get(field.path[0]) if len(field.path) == 1 else None
        if column is None:
            raise field.missing("its object", "it holds no column of texts")
        for number, text in enumerate(column, 1):
            yield field.of({field.path[0]: text}, f"cell {number}")

    def _lines(self) -> Iterator[str]:
        """Lines with their ends, none longer than a value may be."""
        held: list[str] = []
        size, number = 0, 1
        for chunk in self._decoded():
            for line in chunk.splitlines(keepends=True) if "\n" in chunk else (chunk,):
                held.append(line)
                size += len(line)
                if size > MAX_VALUE:
                    raise MicroscopeError(
                        "bad_corpus_file",
                        f"{self.name}, line {number} has more than {MAX_VALUE // 2**20} MB.",
                        "Give one document a line.",
                    )
                if line.endswith("\n"):
                    yield "".join(held)
                    held, size, number = [], 0, number + 1
        if held:
            yield "".join(held)

    def _unreadable(self, error: OSError) -> MicroscopeError:
        return MicroscopeError(
            "bad_corpus_file",
            f"{self.name} cannot be read: {error.strerror or error}.",
            "Check the file and who may read it.",
        )


def _is_row(row: dict[str, Any], wanted: str) -> bool:
    return isinstance(row.get(wanted), str)


def _cells(value: Any) -> list[Any] | None:
    if isinstance(value, list):
        return value
    if isinstance(value, dict) and value and all(key.isdecimal() for key in value):
        return list(value.values())
    return None


def _example(cells: list[Any]) -> Any:
    return next((cell for cell in cells if cell is not None), None)
