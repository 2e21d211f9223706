"""JSON and Parquet of strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.quarantine.parquet import check_structure

MAX_JSON = 64 * 2**20
_MAX_DEPTH = 64
_MAX_VALUES = (
    6_000_000  # each takes up to a hundred bytes once it is parsed; the largest tokenizers have two million
)
_MAX_ROW_GROUP = 8 * 2**30


def parse_json(raw: bytes, name: str, *, code: str = "bad_json", strict: bool = True) -> dict[str, Any]:
    """A JSON object, not nested beyond reason; where it is strict, without duplicate keys, NaN and infinities.

    Raises:
        MicroscopeError: of the given code.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if strict and len(found) != len(items):
            raise ValueError("a key occurs twice")
        return found

    def constant(text: str) -> Any:
        if not strict:
            return float(text)
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


def check_parquet(path: Path, name: str) -> int:
    """The headers of a Parquet file against its bytes; returns the number of rows.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_corpus_file`` or ``parquet_too_large``.
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
            return int(metadata.num_rows)
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MicroscopeError("bad_corpus_file", f"{name} cannot be read: {reason}.") from error
