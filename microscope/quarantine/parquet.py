"""The structure of a Parquet file, walked by ourselves before any library unpacks a page of it.

What a page unpacks to stands in its own header, and libraries allocate that much; the footer may say something else.
Format: apache/parquet-format, README.md and parquet.thrift.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from microscope.errors import MicroscopeError
from microscope.quarantine.content import read_head
from microscope.quarantine.thrift import Reader, Unsound

MAX_PAGE = 128 * 2**20  # bytes of one page when unpacked; the usual ones have one MiB
_MAX_SHARED_PREFIX_PAGE = 4 * 2**20  # where values may repeat the beginning of the one before
_MAX_FOOTER = 16 * 2**20
_MAX_VALUES = 2_000_000  # in a footer
_MAX_DEPTH = 32
_MAX_COLUMNS = 20_000
_MAX_VALUE = 2**20  # bytes of a value of fixed length
_MAX_PAGES = 2_000_000
_HEADER_ROOM = 64 * 2**10  # bytes; with statistics, which hold a smallest and a largest value
_LARGEST_HEADER = 16 * 2**20
_DELTA_BYTE_ARRAY = 7


def check_structure(path: Path, name: str) -> None:
    """Every header of a Parquet file against the file and against what may be unpacked; no data are read.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_corpus_file`` or ``parquet_too_large``.
    """
    if not read_head(path).startswith(b"PAR1"):
        raise MicroscopeError("wrong_file_type", f"{name} is no Parquet file.", "Give a Parquet file.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if size < 12 or tail[4:] != b"PAR1" or length + 12 > size:
            raise MicroscopeError(
                "bad_corpus_file", f"{name} is a Parquet file that ends too early.", "Upload it again, whole."
            )
        if length > _MAX_FOOTER:
            raise _too_large(name, f"its footer has {length} bytes; {_MAX_FOOTER} are allowed")
        stream.seek(size - 8 - length)
        try:
            footer = Reader(stream.read(length), _MAX_VALUES).struct()
            _check_schema(footer, name)
            _check_groups(stream, footer, size - 8 - length, name)
        except (Unsound, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = str(error) if isinstance(error, Unsound) else "a header lacks what it must have"
            raise MicroscopeError(
                "bad_corpus_file", f"{name} is no sound Parquet file: {reason}.", "Write or upload it again."
            ) from error


def _too_large(name: str, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "parquet_too_large",
        f"{name} would take too much memory: {reason}.",
        "Write it again with pages of the usual size (1 MiB) and shorter texts.",
    )


def _check_schema(footer: dict[int, Any], name: str) -> None:
    """The tree of columns, which is a list of nodes that say how many children follow."""
    nodes = footer[2]
    if len(nodes) > _MAX_COLUMNS:
        raise _too_large(name, f"it has {len(nodes)} columns; {_MAX_COLUMNS} are allowed")
    open_nodes: list[int] = []  # how many children each node on the way down still lacks
    for place, node in enumerate(nodes):
        if place and not open_nodes:
            raise Unsound("its columns form no tree")
        children = node.get(5, 0)
        if children < 0 or children > len(nodes):
            raise Unsound("a column has more parts than there are")
        if not 0 <= node.get(2, 0) <= _MAX_VALUE:
            raise _too_large(name, f"values of one column have {node[2]} bytes each")
        if open_nodes:
            open_nodes[-1] -= 1
        if children:
            open_nodes.append(children)
        if len(open_nodes) > _MAX_DEPTH:
            raise _too_large(name, f"its columns are nested deeper than {_MAX_DEPTH} levels")
        while open_nodes and not open_nodes[-1]:
            open_nodes.pop()
    if open_nodes or not nodes:
        raise Unsound("its columns form no tree")


def _check_groups(stream: IO[bytes], footer: dict[int, Any], end: int, name: str) -> None:
    """The pages of every column of every group of rows; the data lie before ``end``."""
    if footer[3] < 0:
        raise Unsound("it has less than no rows")
    pages = 0
    for group in footer[4]:
        if group[3] < 0:
            raise Unsound("a group has less than no rows")
        for chunk in group[1]:
            if 1 in chunk:
                raise Unsound("a column lies in another file")
            pages += _check_pages(stream, chunk[3], end, name)
            if pages > _MAX_PAGES:
                raise _too_large(name, f"it has more than {_MAX_PAGES} pages")


def _check_pages(stream: IO[bytes], column: dict[int, Any], end: int, name: str) -> int:
    """Walk from page header to page header; returns how many there are."""
    first, length, values = column[9], column[7], column[5]
    if values == length == 0:
        return 0
    dictionary = column.get(11, 0)
    if dictionary > 0 and not 0 < first < dictionary:  # its page comes before; there may be no other
        first = dictionary
    if values < 0 or length < 0 or first < 4 or first + length > end:
        raise Unsound("a column lies outside the file")
    place, stop, pages = first, first + length, 0
    while place < stop:
        header, taken = _page_header(stream, place, stop)
        packed, unpacked = header[3], header[2]
        place += taken + packed
        if packed < 0 or unpacked < 0 or place > stop:
            raise Unsound("a page lies outside its column")
        encoding = (header.get(5) or header.get(8) or {}).get(2 if 5 in header else 4)
        most = _MAX_SHARED_PREFIX_PAGE if encoding == _DELTA_BYTE_ARRAY else MAX_PAGE
        if unpacked > most:
            raise _too_large(name, f"a page of it unpacks to {unpacked} bytes; {most} are allowed")
        pages += 1
    return pages


def _page_header(stream: IO[bytes], place: int, stop: int) -> tuple[dict[int, Any], int]:
    """A page's header, and how many bytes it has."""
    room = _HEADER_ROOM
    while True:
        stream.seek(place)
        data = stream.read(min(room, stop - place))
        reader = Reader(data, 1000)
        try:
            return reader.struct(), reader.place
        except Unsound:
            if room >= min(stop - place, _LARGEST_HEADER):
                raise
            room *= 16
