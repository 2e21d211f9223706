"""The header of a GGUF file, parsed by ourselves before any library maps the file and believes its counts.

Format: ggml-org/ggml, docs/gguf.md: counts, typed values by key, the list of tensors, and the data.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from microscope.errors import MicroscopeError
from microscope.quarantine.content import read_head

VERSIONS = (2, 3)
_MAX_TENSORS = 100_000
_MAX_KEYS = 10_000
_MAX_ITEMS = 4_000_000  # of all lists together; vocabularies and merges of the largest have one million
_MAX_TEXT = 2**20  # bytes of one text: a chat template is the longest
_MAX_NAME = 200
_MAX_RANK = 4
_ARRAY, _TEXT, _BOOL = 9, 8, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BLOCK = re.compile(r"blk\.(\d+)\.")


class GgufTensor(NamedTuple):
    """One entry of the list: sides as PyTorch orders them, GGML's number of the type, bytes in the file."""

    shape: tuple[int, ...]
    kind: int
    size: int


class GgufHeader(NamedTuple):
    """What a sound file says about itself. Of a list of texts or numbers only the length is kept."""

    metadata: dict[str, Any]
    lengths: dict[str, int]
    tensors: dict[str, GgufTensor]

    @property
    def parameters(self) -> int:
        """How many numbers its tensors hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def blocks(self) -> int:
        """How many blocks it has weights of, by the highest number."""
        numbers = (int(found.group(1)) for name in self.tensors if (found := _BLOCK.match(name)))
        return max(numbers, default=-1) + 1


def check_gguf(path: Path, name: str | None = None) -> GgufHeader:
    """Check a whole header against the file, and that it is of a language model.

    Raises:
        MicroscopeError: ``wrong_file_type``, or ``bad_model_file`` with what is wrong.
    """
    header = read_gguf(path, name)
    check_model(header, name or path.name)
    return header


def read_gguf(path: Path, name: str | None = None) -> GgufHeader:
    """Check a whole header against the file, whatever it is of.

    Raises:
        MicroscopeError: ``wrong_file_type``, or ``bad_model_file`` with what is wrong.
    """
    shown = name or path.name
    if read_head(path)[:4] != b"GGUF":
        raise MicroscopeError(
            "wrong_file_type",
            f"{shown} is not a GGUF file.",
            "Give a .gguf file, a model folder or a Hub id.",
        )
    size = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(4)
        try:
            return _Parser(stream, size).header()
        except _UnsoundError as error:
            raise _unsound(shown, error) from error


def check_model(header: GgufHeader, name: str) -> None:
    """Whether a header's settings suit its weights: a model of another size is not built.

    Raises:
        MicroscopeError: ``bad_model_file``.
    """
    try:
        _check_blocks(header)
    except _UnsoundError as error:
        raise _unsound(name, error) from error


def joined(headers: Sequence[GgufHeader], name: str) -> GgufHeader:
    """The header of a model whose tensors are in several files; the first says what it is of.

    Raises:
        MicroscopeError: ``bad_model_file`` for a tensor in two files.
    """
    tensors: dict[str, GgufTensor] = {}
    for header in headers:
        for tensor, entry in header.tensors.items():
            if tensor in tensors:
                raise _unsound(name, _UnsoundError(f"the tensor {tensor} is in two of its parts"))
            tensors[tensor] = entry
    return GgufHeader(headers[0].metadata, headers[0].lengths, tensors)


def _unsound(name: str, error: Exception) -> MicroscopeError:
    return MicroscopeError(
        "bad_model_file",
        f"{name} is no sound GGUF file: {error}.",
        "It may be cut off: download or convert it again.",
    )


class _UnsoundError(ValueError):
    """The file is not what the format allows."""


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    kind: int
    offset: int


class _Parser:
    """Reads forward through a header; ``size`` is the file's, beyond which nothing may point."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size, self._items = stream, size, 0
        self._entries: dict[str, _Entry] = {}
        self._metadata: dict[str, Any] = {}
        self._lengths: dict[str, int] = {}

    def header(self) -> GgufHeader:
        """All of it."""
        version = self._number("I")
        if version not in VERSIONS:
            raise _UnsoundError(f"its version is {version}; {' and '.join(map(str, VERSIONS))} are read")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MAX_TENSORS:
            raise _UnsoundError(f"it has {tensors} tensors; {_MAX_TENSORS} are allowed")
        if keys > _MAX_KEYS:
            raise _UnsoundError(f"it has {keys} keys; {_MAX_KEYS} are allowed")
        for _ in range(keys):
            self._pair()
        for _ in range(tensors):
            self._tensor()
        alignment = self._metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**16 or alignment & (alignment - 1):
            raise _UnsoundError(f"its alignment is {alignment}")
        start = -(-self._stream.tell() // alignment) * alignment
        found = {}
        for name, entry in self._entries.items():
            found[name] = GgufTensor(entry.shape[::-1], entry.kind, _bytes_of(name, entry))
        self._check_places(found, start, alignment)
        return GgufHeader(self._metadata, self._lengths, found)

    def _check_places(self, found: dict[str, GgufTensor], start: int, alignment: int) -> None:
        place = 0
        for name, entry in sorted(self._entries.items(), key=lambda item: item[1].offset):
            if entry.offset % alignment:
                raise _UnsoundError(f"{name} is not aligned")
            if entry.offset < place:
                raise _UnsoundError(f"{name} overlaps the tensor before it")
            place = entry.offset + found[name].size
            if start + place > self._size:
                raise _UnsoundError(
                    f"{name} ends at byte {start + place}, and the file has {self._size}: it is incomplete"
                )

    def _pair(self) -> None:
        key, kind = self._text(_MAX_NAME), self._number("I")
        if key in self._metadata or key in self._lengths:
            raise _UnsoundError(f"the key {key} occurs twice")
        if kind == _ARRAY:
            self._lengths[key] = self._array(key)
        else:
            self._metadata[key] = self._scalar(kind, key)

    def _array(self, key: str) -> int:
        kind, length = self._number("I"), self._number("Q")
        self._items += length
        if self._items > _MAX_ITEMS:
            raise _UnsoundError(f"the list {key} has {length} items; {_MAX_ITEMS} are allowed in all")
        if kind == _TEXT:
            for _ in range(length):
                self._skip(self._length(_MAX_TEXT))
        elif kind in _SCALARS:
            self._skip(length * struct.calcsize(f"<{_SCALARS[kind]}"))
        else:
            raise _UnsoundError(f"the list {key} holds values of type {kind}")
        return int(length)

    def _scalar(self, kind: int, key: str) -> Any:
        if kind == _TEXT:
            return self._text(_MAX_TEXT)
        if kind not in _SCALARS:
            raise _UnsoundError(f"{key} has the unknown type {kind}")
        value = self._number(_SCALARS[kind])
        return bool(value) if kind == _BOOL else value

    def _tensor(self) -> None:
        name, rank = self._text(_MAX_NAME), self._number("I")
        if name in self._entries:
            raise _UnsoundError(f"the tensor {name} occurs twice")
        if not 1 <= rank <= _MAX_RANK:
            raise _UnsoundError(f"{name} has {rank} sides")
        shape = tuple(self._number("Q") for _ in range(rank))
        if not all(1 <= side < 2**40 for side in shape):
            raise _UnsoundError(f"{name} has the sides {', '.join(map(str, shape))}")
        self._entries[name] = _Entry(shape, self._number("I"), self._number("Q"))

    def _number(self, code: str) -> Any:
        length = struct.calcsize(f"<{code}")
        return struct.unpack(f"<{code}", self._take(length))[0]

    def _length(self, most: int) -> int:
        length = int(self._number("Q"))
        if length > most:
            raise _UnsoundError(f"a text of it has {length} bytes; {most} are allowed")
        return length

    def _text(self, most: int) -> str:
        try:
            return self._take(self._length(most)).decode()
        except UnicodeDecodeError as error:
            raise _UnsoundError("a text of it is no UTF-8") from error

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        if len(data) < length:
            raise _UnsoundError("it ends within its header")
        return data

    def _skip(self, length: int) -> None:
        place = self._stream.tell() + length
        if place > self._size:
            raise _UnsoundError("it ends within its header")
        self._stream.seek(place)


def _bytes_of(name: str, entry: _Entry) -> int:
    """Bytes of a tensor: quantised ones come in blocks of so many numbers, along the first side."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(entry.kind)]
    except (ValueError, KeyError) as error:
        raise _UnsoundError(f"{name} has the unknown type {entry.kind}") from error
    if entry.shape[0] % per_block:
        raise _UnsoundError(f"rows of {name} are no whole number of blocks")
    return math.prod(entry.shape) // per_block * block_bytes


def _check_blocks(header: GgufHeader) -> None:
    """What the settings ask for against the weights that are there."""
    family = header.metadata.get("general.architecture")
    if not isinstance(family, str) or not family:
        raise _UnsoundError("it does not say which architecture it is (general.architecture)")
    for key in ("block_count", "embedding_length"):
        value = header.metadata.get(f"{family}.{key}")
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _UnsoundError(f"{family}.{key} is {value if value is not None else 'missing'}")
    blocks = header.metadata[f"{family}.block_count"]
    if blocks != header.blocks:
        raise _UnsoundError(f"it says that it has {blocks} blocks, and has weights of {header.blocks}")
    embedding = header.tensors.get("token_embd.weight")
    if embedding is None:
        raise _UnsoundError("it has no embedding (token_embd.weight)")
    width = header.metadata[f"{family}.embedding_length"]
    if embedding.shape[-1] != width:
        raise _UnsoundError(f"it says that it is {width} wide, and its embedding is {embedding.shape[-1]}")
