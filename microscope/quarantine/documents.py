"""JSON, JSON Lines, plain text and Parquet of strangers."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from microscope.errors import MicroscopeError
from microscope.progress import SILENT, Progress
from microscope.quarantine.content import read_head, refuse_foreign
from microscope.quarantine.parquet import check_structure

MAX_JSON = 64 * 2**20
_LINE_LIMIT = 32 * 2**20
_MAX_DEPTH = 64
_MAX_VALUES = (
    6_000_000  # each takes up to a hundred bytes once it is parsed; the largest tokenizers have two million
)
_MAX_ROW_GROUP = 8 * 2**30
_TOLD_BYTES = 16 * 2**20
ACCEPTED = "Give UTF-8 text, JSON Lines or Parquet."


class Corpus(NamedTuple):
    """What kind of text a file holds (its suffix from here on), and how many documents if that is known."""

    suffix: str
    documents: int | None


def parse_json(raw: bytes, name: str, *, code: str = "bad_json") -> dict[str, Any]:
    """A JSON object without duplicate keys, not nested beyond reason.

    Raises:
        MicroscopeError: of the given code.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            raise ValueError("a key occurs twice")
        return found

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is no JSON")

    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > _MAX_VALUES:
        raise MicroscopeError(code, f"{name} has more than {_MAX_VALUES} values.")
    try:
        data = json.loads(raw.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MicroscopeError(code, f"{name} cannot be read as JSON: {reason}.") from error
    if not isinstance(data, dict):
        raise MicroscopeError(code, f"{name} is no JSON object.")
    if _depth(data) > _MAX_DEPTH:
        raise MicroscopeError(code, f"{name} is nested deeper than {_MAX_DEPTH} levels.")
    return data


def _depth(data: Any) -> int:
    level, deepest = [data], 0
    while level:
        deepest += 1
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return deepest


def check_json(path: Path, name: str | None = None) -> dict[str, Any]:
    """A configuration file.

    Raises:
        MicroscopeError: ``bad_json``.
    """
    shown = name or path.name
    if path.stat().st_size > MAX_JSON:
        raise MicroscopeError("bad_json", f"{shown} has more than {MAX_JSON // 2**20} MB.")
    return parse_json(path.read_bytes(), shown)


def check_corpus(path: Path, name: str, text_field: str, progress: Progress = SILENT) -> Corpus:
    """Text, JSON Lines or Parquet, read from the first byte to the last.

    Raises:
        MicroscopeError: ``corpus_empty``, ``wrong_file_type``, ``bad_corpus_file`` or ``no_text_field``.
    """
    if path.stat().st_size == 0:
        raise MicroscopeError("corpus_empty", f"{name} is empty.")
    refuse_foreign(path, name, ACCEPTED)
    suffix, head = Path(name).suffix.lower(), read_head(path)
    if head.startswith(b"PAR1") or suffix == ".parquet":
        return Corpus(".parquet", check_parquet(path, name, text_field, progress))
    lines = suffix in (".jsonl", ".ndjson") or (suffix not in (".txt", ".text", ".md") and head[:1] == b"{")
    documents = _check_text(path, name, text_field if lines else None, progress)
    return Corpus(".jsonl" if lines else ".txt", documents)


def check_parquet(path: Path, name: str, text_field: str | None = None, progress: Progress = SILENT) -> int:
    """The headers of a Parquet file against its bytes, and the whole column of texts; returns the number of rows.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_corpus_file``, ``parquet_too_large`` or ``no_text_field``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_structure(path, name)
    try:
        # Buffered: pages are read one by one instead of whole columns.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            metadata = file.metadata
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if group.total_byte_size > _MAX_ROW_GROUP or group.num_rows < 0:
                    raise MicroscopeError(
                        "bad_corpus_file", f"{name} would unpack to {group.total_byte_size} bytes at once."
                    )
            names = file.schema_arrow.names
            if text_field is not None:
                _check_column(file, name, text_field, names, progress)
            return int(metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MicroscopeError("bad_corpus_file", f"{name} cannot be read: {reason}.") from error


def _check_column(file: Any, name: str, text_field: str, names: list[str], progress: Progress) -> None:
    import pyarrow as pa

    kind = file.schema_arrow.field(text_field).type if names.count(text_field) == 1 else None
    if kind is None or not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise MicroscopeError(
            "no_text_field",
            f"{name} has no text in '{text_field}' (found: {', '.join(names[:8])}).",
            "Name the field that holds the text.",
        )
    filled, rows = False, 0
    with progress.phase("check", file.metadata.num_rows, "documents"):
        for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
            filled = filled or any(value and value.strip() for value in batch.column(0).to_pylist())
            rows += batch.num_rows
            progress.advance(rows)
    if not filled:
        raise MicroscopeError("corpus_empty", f"{name} contains no text.", "Give a file with text in it.")


def _check_text(path: Path, name: str, text_field: str | None, progress: Progress) -> int | None:
    """Decode everything; for JSON Lines parse every line. Returns the number of documents if known."""
    documents, filled, told = 0, False, 0
    with path.open("rb") as stream, progress.phase("check", path.stat().st_size, "bytes"):
        for number, text in _lines(stream, name):
            if stream.tell() - told > _TOLD_BYTES:
                told = stream.tell()
                progress.advance(told)
            if "\0" in text:
                raise MicroscopeError("wrong_file_type", f"{name} is a binary file.", ACCEPTED)
            if not text.strip():
                continue
            if text_field is None:
                filled = True
                continue
            documents += 1
            filled |= bool(_field(text, text_field, name, number).strip())
    if not filled:
        raise MicroscopeError("corpus_empty", f"{name} contains no text.", "Give a file with text in it.")
    return documents if text_field is not None else None


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded strictly; a very long line comes in pieces that never split a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    try:
        while raw := stream.readline(_LINE_LIMIT):
            yield number, decoder.decode(raw)
            number += raw.endswith(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise MicroscopeError(
            "wrong_file_type", f"{name} is not text: line {number} is no UTF-8.", ACCEPTED
        ) from error


def _field(line: str, text_field: str, name: str, number: int) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise MicroscopeError("bad_corpus_file", f"{name}, line {number} is not JSON: {reason}.") from error
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        found = ", ".join(sorted(map(str, row))[:8]) if isinstance(row, dict) else "no object"
        raise MicroscopeError(
            "no_text_field",
            f"{name}, line {number} has no text in '{text_field}' (found: {found}).",
            "Name the field that holds the text.",
        )
    return str(row[text_field])
