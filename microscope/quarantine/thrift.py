"""A reader of Thrift's compact protocol, in which Parquet writes its headers: bounded, and without a schema.

Specification: apache/thrift, doc/specs/thrift-compact-protocol.md. Structs become dictionaries of field number → value.
"""

from __future__ import annotations

from typing import Any

_MAX_DEPTH = 16  # of structs and lists in each other; Parquet's own need seven
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


class Unsound(ValueError):
    """The bytes are not what the protocol allows."""


class Reader:
    """Reads from a buffer; ``place`` is where it is.

    Args:
        data: the bytes.
        room: how many values it may make, so that a small buffer makes no large object.
    """

    def __init__(self, data: bytes, room: int) -> None:
        self._data, self.place, self._room = data, 0, room

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """A whole struct.

        Raises:
            Unsound: it is none.
        """
        if depth > _MAX_DEPTH:
            raise Unsound("it is nested too deeply")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._zigzag()
            if number in found:
                raise Unsound("a field occurs twice")
            found[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, depth + 1)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        self._room -= 1
        if self._room < 0:
            raise Unsound("it has more values than a sound one")
        match kind:
            case 1 | 2:  # in a list each is a byte
                return self._byte() == _TRUE
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._zigzag()
            case 7:
                return self._take(8)
            case 8:
                return self._take(self._varint())
            case 9 | 10:
                return self._list(depth)
            case 11:
                return self._map(depth)
            case 12:
                return self.struct(depth)
        raise Unsound(f"there is no type {kind}")

    def _list(self, depth: int) -> list[Any]:
        if depth > _MAX_DEPTH:
            raise Unsound("it is nested too deeply")
        head = self._byte()
        count, kind = head >> 4, head & 15
        if count == 15:
            count = self._varint()
        self._need(count)
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _map(self, depth: int) -> list[tuple[Any, Any]]:
        count = self._varint()
        self._need(count)
        kinds = self._byte() if count else 0
        return [
            (self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)
        ]

    def _need(self, count: int) -> None:
        """Every element of a list takes a byte at least."""
        if count > len(self._data) - self.place:
            raise Unsound("a list is longer than all that follows")

    def _byte(self) -> int:
        if self.place >= len(self._data):
            raise Unsound("it ends too early")
        self.place += 1
        return self._data[self.place - 1]

    def _take(self, length: int) -> bytes:
        if length > len(self._data) - self.place:
            raise Unsound("it ends too early")
        self.place += length
        return self._data[self.place - length : self.place]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise Unsound("a number has more than 64 bits")

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
