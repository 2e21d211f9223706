"""Rows of a plain Parquet column where they lie in the file.

A required FixedSizeBinary column without compression and dictionary is, apart from a short header before
every page, the rows themselves, one after the other. Mapped into memory they can be picked in any order
without being decoded and copied beforehand. Page headers are Thrift structs in the compact protocol:
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift and
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microscope.errors import MicroscopeError

# Fields of PageHeader and of DataPageHeader, and the values a plain page has in them.
_TYPE, _SIZE, _SIZE_ON_DISK, _DATA_PAGE = 1, 2, 3, 5
_NUM_VALUES, _ENCODING = 1, 2
_V1, _PLAIN = 0, 0
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 1, 2, 3, 7, 8, 12
_WHOLE = (4, 5, 6)


class _NotPlain(Exception):
    pass


class _Span(NamedTuple):
    """The bytes of one row group's column, and the offset in the file of each of its rows."""

    first: int
    last: int
    rows: np.ndarray


class MappedShard:
    """A shard of a recording, mapped into memory: ``file`` to decode it, and its rows where they are.

    Raises:
        pyarrow.ArrowInvalid, OSError, ValueError: if it is no whole Parquet file.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with path.open("rb") as stream:
            self.map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.file = pq.ParquetFile(pa.BufferReader(pa.py_buffer(self.map)))


class MappedColumn:
    """A column of activations of one shard.

    ``values`` has an item of one whole row for every byte offset in the file; only those at the offsets
    of :meth:`offsets` are rows.

    Raises:
        MicroscopeError: ``bad_recording`` if the column is stored in another way.
    """

    def __init__(self, shard: MappedShard, column: str, width: int) -> None:
        self._map, file, size = shard.map, shard.file, 2 * width
        self._bytes = np.frombuffer(self._map, np.uint8)
        self.values = np.ndarray((len(self._map) - size + 1,), f"V{size}", self._map, 0, (1,))
        number = [file.schema.column(i).path for i in range(len(file.schema))].index(column)
        try:
            if file.schema.column(number).max_definition_level:
                raise _NotPlain("it may hold nulls")
            self._spans = [
                self._span(file.metadata.row_group(group).column(number), size)
                for group in range(file.num_row_groups)
            ]
        except _NotPlain as reason:
            raise MicroscopeError(
                "bad_recording",
                f"The column {column} of the shard {shard.name} is not stored as plain rows: {reason}.",
                "Open the shard itself, which converts it, or record it anew.",
            ) from None

    def offsets(self, group: int) -> np.ndarray:
        """Where the rows of a row group are: ``[rows]`` int64."""
        return self._spans[group].rows

    def load(self, group: int) -> None:
        """Read a row group from the disk in one go, if it is not in memory already."""
        span = self._spans[group]
        self._bytes[span.first : span.last : mmap.PAGESIZE].max(initial=0)

    def release(self, group: int) -> None:
        """Let go of a row group; it can be used again, but may have to be read again."""
        span = self._spans[group]
        first = -(-span.first // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and span.last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, span.last - first)

    def _span(self, chunk: pq.ColumnChunkMetaData, size: int) -> _Span:
        if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
            raise _NotPlain("it is compressed")
        first = offset = chunk.data_page_offset
        last = first + chunk.total_compressed_size
        found: list[np.ndarray] = []
        while offset < last:
            header, offset = _struct(self._map, offset)
            page = header.get(_DATA_PAGE, {})
            count = page.get(_NUM_VALUES, 0)
            if header.get(_TYPE) != _V1 or page.get(_ENCODING) != _PLAIN:
                raise _NotPlain("its pages are encoded")
            if not header.get(_SIZE) == header.get(_SIZE_ON_DISK) == count * size:
                raise _NotPlain(f"a page of {count} rows has {header.get(_SIZE)} bytes")
            found.append(offset + size * np.arange(count))
            offset += count * size
        rows = np.concatenate(found) if found else np.empty(0, np.int64)
        if offset != last or len(rows) != chunk.num_values:
            raise _NotPlain("its pages do not add up")
        return _Span(first, last, rows)


def _struct(source: mmap.mmap, offset: int) -> tuple[dict[int, Any], int]:
    """Fields of a struct by their number, whole numbers and structs only, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while True:
        head = source[offset]
        offset += 1
        if not head:
            return fields, offset
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, offset = _whole(source, offset)
        if kind in (_TRUE, _FALSE):
            continue
        if kind in _WHOLE:
            fields[number], offset = _whole(source, offset)
        elif kind == _STRUCT:
            fields[number], offset = _struct(source, offset)
        elif kind == _BINARY:
            length, offset = _varint(source, offset)
            offset += length
        elif kind in (_BYTE, _DOUBLE):
            offset += 1 if kind == _BYTE else 8
        else:
            raise _NotPlain("a page header holds a collection")


def _varint(source: mmap.mmap, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = source[offset]
        offset += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, offset


def _whole(source: mmap.mmap, offset: int) -> tuple[int, int]:
    """A signed number in zigzag form."""
    value, offset = _varint(source, offset)
    return (value >> 1) ^ -(value & 1), offset


def site_values(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A binary column as float16 ``[rows, width]``, without a copy where it is in one piece."""
    parts = []
    for chunk in column.chunks:
        raw = np.frombuffer(
            chunk.buffers()[1], dtype="<f2", count=len(chunk) * width, offset=chunk.offset * 2 * width
        )
        parts.append(raw.reshape(len(chunk), width))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
