"""Parquet made to hurt is refused in words, within bounded memory and time."""

from __future__ import annotations

import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from microscope.quarantine import check_file
from microscope.quarantine.parquet import MAX_PAGE, check_structure
from tests.refusals import refusal
from tests.tables import table

MIB = 2**20


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd", "lz4", "brotli"])
def test_parquet_of_the_real_library_passes(tmp_path, compression) -> None:
    path = tmp_path / "x.parquet"
    for dictionary in (True, False):
        for version, rows in (("1.0", 100), ("2.0", 100), ("2.0", 10**6)):
            pq.write_table(
                table(),
                path,
                compression=compression,
                use_dictionary=dictionary,
                data_page_version=version,
                row_group_size=rows,
                data_page_size=1000,
                write_page_index=dictionary,
            )
            check_structure(path, "x")


@pytest.mark.parametrize("encoding", ["PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_parquet_in_every_encoding_of_texts(tmp_path, encoding) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(table().select(["text"]), path, use_dictionary=False, column_encoding={"text": encoding})
    check_structure(path, "x")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    check_structure(path, "no rows")
    pq.write_table(pa.table({"text": ["x" * 3 * MIB] * 3}), path)
    check_structure(path, "long texts")


def deep(levels: int) -> pa.Table:
    kind, value = pa.string(), "x"
    for _ in range(levels):
        kind, value = pa.struct([("a", kind)]), {"a": value}
    return pa.table({"text": pa.array([value], kind)})


def test_parquet_bombs(tmp_path) -> None:
    """Small files that unpack to gigabytes: seen in the headers of their pages, whatever the footer says."""
    path = tmp_path / "x.parquet"
    zeros = "0" * (MAX_PAGE + 1)
    for dictionary in (True, False):
        pq.write_table(pa.table({"text": [zeros]}), path, compression="zstd", use_dictionary=dictionary)
        assert path.stat().st_size < 100_000
        assert refusal(check_file, path, "x.parquet").code == "parquet_too_large"
    # Each value repeats the one before: a page of so many bytes holds a hundred times as many.
    pq.write_table(
        pa.table({"text": ["0" * 6 * MIB + str(n) for n in range(100)]}),
        path,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"text": "DELTA_BYTE_ARRAY"},
        data_page_size=2**30,
    )
    assert refusal(check_file, path, "x.parquet").code == "parquet_too_large"
    pq.write_table(deep(100), path)
    assert "nested" in refusal(check_file, path, "x.parquet").message


class Compact:
    """Writes Thrift's compact protocol: what no library writes."""

    @staticmethod
    def varint(value: int) -> bytes:
        out = b""
        while value > 127:
            out += bytes([value & 127 | 128])
            value >>= 7
        return out + bytes([value])

    @classmethod
    def integer(cls, value: int) -> bytes:
        return cls.varint((value << 1) ^ (value >> 63) if value >= 0 else ((-value) << 1) - 1)

    @classmethod
    def struct(cls, fields: dict[int, object]) -> bytes:
        out, last = b"", 0
        for number, value in sorted(fields.items()):
            kind, data = cls.value(value)
            out += bytes([(number - last) << 4 | kind]) + data
            last = number
        return out + b"\0"

    @classmethod
    def value(cls, value: object) -> tuple[int, bytes]:
        match value:
            case int():
                return 6, cls.integer(value)
            case str():
                return 8, cls.varint(len(value)) + value.encode()
            case dict():
                return 12, cls.struct(value)
            case list():
                parts = [cls.value(one) for one in value]
                kind = parts[0][0] if parts else 12
                return 9, bytes([0xF0 | kind]) + cls.varint(len(parts)) + b"".join(d for _, d in parts)
        raise TypeError(value)


ROOT = {4: "schema", 5: 1}
TEXT = {1: 6, 3: 0, 4: "text"}
PAGE = {1: 0, 2: 10, 3: 10, 5: {1: 1, 2: 0, 3: 3, 4: 3}}


def made_parquet(
    path: Path, *, page: dict | None = None, raw: bytes | None = None, **changes: object
) -> Path:
    """A file of one column and one page, with something changed."""
    header = Compact.struct(PAGE if page is None else page)
    body = header + bytes(10)
    column: dict[int, object] = {1: 6, 2: [0], 3: ["text"], 4: 0, 5: 1, 6: len(body), 7: len(body), 9: 4}
    column |= changes.pop("column", {})  # type: ignore[operator]
    chunk = {2: 0, 3: column} | changes.pop("chunk", {})  # type: ignore[operator]
    group: dict[int, object] = {1: [chunk], 2: len(body), 3: 1}
    group |= changes.pop("group", {})  # type: ignore[operator]
    footer: dict[int, object] = {1: 2, 2: [ROOT, TEXT], 3: 1, 4: [group]} | changes.pop("footer", {})  # type: ignore[operator]
    assert not changes
    tail = Compact.struct(footer) if raw is None else raw
    path.write_bytes(b"PAR1" + body + tail + struct.pack("<I", len(tail)) + b"PAR1")
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"page": {**PAGE, 2: 2**40}},
        {"page": {**PAGE, 3: 2**40}},
        {"page": {**PAGE, 2: -5}},
        {"page": {1: 0}},
        {"page": {}},
        {"column": {9: 10**9}},
        {"column": {7: 2**62}},
        {"column": {7: -1}},
        {"column": {5: -1}},
        {"column": {9: 0}},
        {"chunk": {1: "/etc/passwd"}},
        {"group": {3: -1}},
        {"group": {1: [{2: 0}]}},
        {"footer": {3: -1}},
        {"footer": {2: []}},
        {"footer": {2: [{4: "schema", 5: 2**31 - 1}, TEXT]}},
        {"footer": {2: [{4: "schema", 5: -1}, TEXT]}},
        {"footer": {2: [ROOT, TEXT, TEXT]}},
        {"footer": {2: [ROOT, {**TEXT, 2: 2**31 - 1}]}},
        {"footer": {2: [{4: "s", 5: 1}] * 1000 + [TEXT]}},
        {"footer": {4: "not a list"}},
        {"raw": b""},
        {"raw": b"\x19" * 50_000},
        {"raw": b"\x1c" * 50_000},
        {"raw": b"\x19\xfc\xff\xff\xff\xff\x0f"},
        {"raw": b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\x7f"},
        {"raw": b"\x15" + b"\xff" * 30},
        {"raw": b"\x1f\x00"},
    ],
)
def test_parquet_headers_that_lie(tmp_path, change) -> None:
    path = made_parquet(tmp_path / "x.parquet")
    check_structure(path, "x")  # the unchanged one is sound, or the test would prove nothing
    path = made_parquet(tmp_path / "x.parquet", **change)
    assert refusal(check_structure, path, "x").code in ("bad_corpus_file", "parquet_too_large")
