"""Texts in tables: Parquet, Arrow and CSV, a few rows at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from microscope.errors import MicroscopeError
from microscope.quarantine.documents import check_parquet
from microscope.texts.fields import TextField
from microscope.texts.json_values import MAX_VALUE

At = Callable[[int], None]
_ROWS = 256
_EXAMPLE_DEPTH = 4
_OF_DICTIONARIES = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}


def parquet_texts(path: Path, name: str, field: TextField, at: At) -> Iterator[str | None]:
    """The texts of a Parquet file; None where a row has none.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_corpus_file`` or ``no_text_field``.
    """
    check_parquet(path, name)
    size = path.stat().st_size
    try:
        # Buffered: pages are read one by one instead of whole columns.
        with pq.ParquetFile(path, buffer_size=1 << 20) as file:
            column = _column(file.schema_arrow, name, field)
            rows = max(file.metadata.num_rows, 1)
            # A dictionary stays one, so that a long text that a file holds once and names often is in
            # memory once; pyarrow does so for these encodings.
            kept = [column] if _encodings(file.metadata, column) <= _OF_DICTIONARIES else []
        with pq.ParquetFile(path, buffer_size=1 << 20, read_dictionary=kept) as file:
            done = 0
            for batch in file.iter_batches(batch_size=_ROWS, columns=[column]):
                yield from _texts(batch, name, field, done)
                done += batch.num_rows
                at(size * done // rows)
    except MemoryError:  # one of Arrow's is one of its exceptions, too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise _unreadable(name, error) from error


def arrow_texts(path: Path, name: str, field: TextField, at: At) -> Iterator[str | None]:
    """The texts of an Arrow file or stream (Feather, and what ``datasets`` saves); None where a row has none.

    Raises:
        MicroscopeError: ``bad_corpus_file`` or ``no_text_field``.
    """
    done = 0
    try:
        with path.open("rb") as stream:
            for batch in _batches(stream):
                batch.validate(full=True)  # offsets of strangers are believed by nobody
                column = _column(batch.schema, name, field)
                chosen = batch.select([column.split(".")[0] if column not in batch.schema.names else column])
                for first in range(0, chosen.num_rows, _ROWS):
                    part = chosen.slice(first, _ROWS)
                    yield from _texts(part, name, field, done)
                    done += part.num_rows
                at(stream.tell())
    except MemoryError:  # one of Arrow's is one of its exceptions, too, and says nothing about the file
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError, KeyError) as error:
        raise _unreadable(name, error) from error


def csv_texts(lines: Iterator[str], name: str, field: TextField, *, tabs: bool) -> Iterator[str | None]:
    """The texts of a table with a first row of names, separated by commas, semicolons or tabs.

    Raises:
        MicroscopeError: ``bad_corpus_file`` or ``no_text_field``.
    """
    first = next(lines, "")
    separator = "\t" if tabs else max(",;\t", key=first.count)
    csv.field_size_limit(MAX_VALUE)
    rows = csv.reader(_with_first(first, lines), delimiter=separator, strict=True)
    try:
        names = next(rows, [])
        if len(set(names)) < len(names):
            raise MicroscopeError("bad_corpus_file", f"{name} has two columns of one name.", "Rename one.")
        field.settle(dict.fromkeys(names, ""), "its first row")
        index = names.index(field.path[0])
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise MicroscopeError(
                    "bad_corpus_file",
                    f"{name}, line {rows.line_num} has {len(row)} cells, and its first row names {len(names)}.",
                    "Put cells that hold the separator or line ends in double quotes.",
                )
            yield row[index]
    except csv.Error as error:
        raise MicroscopeError(
            "bad_corpus_file",
            f"{name}, line {rows.line_num} is not CSV: {error}.",
            "Put cells that hold the separator, quotes or line ends in double quotes.",
        ) from error


def _encodings(metadata: Any, column: str) -> set[str]:
    """How the values of a column are written."""
    found: set[str] = set()
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        found.update(*(chunk.encodings for chunk in chunks if chunk.path_in_schema == column))
    return found


def _with_first(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _batches(stream: Any) -> Iterator[pa.RecordBatch]:
    if stream.read(6) == b"ARROW1":
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(number) for number in range(file.num_record_batches))
    else:
        stream.seek(0)
        yield from pa.ipc.open_stream(stream)


def _column(schema: pa.Schema, name: str, field: TextField) -> str:
    """The column with the text, dotted where it is part of another."""
    names = schema.names
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        raise MicroscopeError(
            "bad_corpus_file", f"{name} has two columns called '{twice[0][:80]}'.", "Rename one of them."
        )
    field.settle({one.name: _example(one.type) for one in schema}, "its table")
    kind: Any = schema.field(field.path[0]).type
    for key in field.path[1:]:
        kind = kind.field(key).type
    if not _is_text(kind):
        raise field.missing("its table", f"the column holds {kind}")
    return ".".join(field.path)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_null(kind)
    )


def _example(kind: pa.DataType, depth: int = 0) -> Any:
    """A value of a type, enough to say whether it can hold a text."""
    if pa.types.is_struct(kind) and depth < _EXAMPLE_DEPTH:
        return {one.name: _example(one.type, depth + 1) for one in kind}
    return "" if _is_text(kind) else 0


def _texts(batch: pa.RecordBatch, name: str, field: TextField, before: int) -> Iterator[str | None]:
    column = batch.column(0)
    for key in field.path[1:]:
        column = column.field(key) if column.null_count == 0 else _nested(column, key)
    for row, value in enumerate(column):
        text = value.as_py()
        if isinstance(text, bytes):
            try:
                text = text.decode()
            except UnicodeDecodeError as error:
                raise MicroscopeError(
                    "wrong_file_type",
                    f"{name}, row {before + row + 1} holds bytes in '{'.'.join(field.path)}' that are no UTF-8 text.",
                    "Name a field that holds text with --text-field.",
                ) from error
        yield text


def _nested(column: pa.Array, key: str) -> pa.Array:
    """A field of rows of which some are null, and then the field is."""
    import pyarrow.compute as pc

    return pc.struct_field(column, key)


def _unreadable(name: str, error: Exception) -> MicroscopeError:
    reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return MicroscopeError(
        "bad_corpus_file", f"{name} cannot be read: {reason}.", "It may be cut off: copy it again, whole."
    )
