"""Files made to hurt: each is refused in words, within bounded memory and time. Real ones, mutated by the hundred, too.

``HOSTILE_MUTATIONS`` says how many mutations of each kind of file are tried.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from microscope.errors import MicroscopeError
from microscope.models import gguf_files, load_model
from microscope.quarantine import check_file, check_json, extract_zip
from microscope.quarantine.gguf import check_gguf
from microscope.quarantine.parquet import MAX_PAGE, check_structure
from tests.tiny_gguf import BLOCKS, VOCAB, WIDTH, made_gguf

MUTATIONS = int(os.environ.get("HOSTILE_MUTATIONS", "300"))
MIB = 2**20


def refusal(call: Callable[..., object], *arguments: object, **options: object) -> MicroscopeError:
    with pytest.raises(MicroscopeError) as caught:
        call(*arguments, **options)
    return caught.value


# --- Parquet ------------------------------------------------------------------------------------------


def table() -> pa.Table:
    return pa.table(
        {
            "text": ["one", "two", None] * 500,
            "n": list(range(1500)),
            "lists": [[1, 2]] * 1500,
            "parts": [{"a": 1, "b": "x"}] * 1500,
            "map": pa.array([[("k", 1)]] * 1500, pa.map_(pa.string(), pa.int32())),
        }
    )


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


# --- archives, arrays, JSON ---------------------------------------------------------------------------


def test_an_archives_list_of_entries_is_bounded(tmp_path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x")
    raw = bytearray(path.read_bytes())
    end = raw.rfind(b"PK\x05\x06")
    struct.pack_into("<H", raw, end + 8, 0xFFF0)
    struct.pack_into("<I", raw, end + 12, 0x7FFFFFFF)
    path.write_bytes(raw)
    out = tmp_path / "out"
    out.mkdir()
    assert refusal(extract_zip, path, out, max_bytes=10**6).code in ("archive_too_large", "bad_archive")
    path.write_bytes(b"PK\x03\x04" + bytes(1000))
    assert refusal(extract_zip, path, out, max_bytes=10**6).code == "bad_archive"
    # A list of four million names: 64-bit counts.
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(70_000):
            archive.writestr(zipfile.ZipInfo(f"{number}"), b"")
    raw = bytearray(path.read_bytes())
    at = raw.rfind(b"PK\x06\x06")
    assert at > 0
    struct.pack_into("<QQ", raw, at + 24, 4_000_000, 4_000_000)
    path.write_bytes(raw)
    assert refusal(extract_zip, path, out, max_bytes=10**6).code == "archive_too_large"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_unusual_packing_is_refused(tmp_path, method) -> None:
    """Its decoders take as much memory as a file says."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a", b"x" * 100)
    assert refusal(extract_zip, path, tmp_path, max_bytes=10**6).code == "bad_archive"


def test_an_array_with_an_endless_header(tmp_path) -> None:
    path = tmp_path / "params.npz"
    header = b"\x93NUMPY\x02\x00" + struct.pack("<I", 300 * MIB)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("W.npy", "w") as entry:
        entry.write(header)
        for _ in range(300):
            entry.write(b" " * MIB)
    assert path.stat().st_size < MIB
    assert refusal(check_file, path, "params.npz").code == "bad_array"


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        '{"a":' + "[" * 90 + "]" * 90 + "}",
        '{"a": ' + "9" * 10_000 + "}",
        '{"a": [' + "[]," * 7_000_000 + "[]]}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": "' + "\ud800",
        "[]",
        "null",
        "",
    ],
    ids=["unclosed", "deep", "digits", "many", "nan", "twice", "cut", "list", "null", "empty"],
)
def test_json_that_is_too_much(tmp_path, text) -> None:
    path = tmp_path / "cfg.json"
    path.write_bytes(text.encode(errors="surrogatepass"))
    assert refusal(check_json, path).code == "bad_json"


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text",
    ["[]", "null", "5", '"x"', "", "{", '{"a":' * 100_000, '{"a":' + "[" * 900 + "]" * 900 + "}"],
    ids=["list", "null", "number", "text", "empty", "cut", "unclosed", "deep"],
)
def test_settings_of_a_model_that_are_none(model_folders, tmp_path, name, text) -> None:
    folder = shutil.copytree(model_folders["llama"], tmp_path / "model")
    (folder / name).write_text(text)
    error = refusal(load_model, str(folder))
    assert error.code == "bad_model_file"
    assert name in error.message


# --- within limits ------------------------------------------------------------------------------------


def taken_in(path: Path, out: Path, *, memory: int) -> tuple[int, str]:
    """``microscope corpus import`` in a process that the system gives so much memory: status and words."""
    done = subprocess.run(
        [sys.executable, "-m", "microscope", "corpus", "import", "--path", str(path), "--out", str(out)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_a_long_text_named_often_is_read_once(tmp_path) -> None:
    """652 bytes that say five gigabytes."""
    path = tmp_path / "x.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["0" * 5 * MIB]))
    pq.write_table(pa.table({"text": text}), path, compression="zstd")
    status, said = taken_in(path, tmp_path / "out", memory=600 * MIB)
    assert status == 0, said


def test_what_needs_more_than_is_allowed_is_refused(tmp_path) -> None:
    table, path = pa.table({"text": ["0" * 800 * MIB]}), tmp_path / "x.arrow"
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table)
    del table
    status, said = taken_in(path, tmp_path / "out", memory=600 * MIB)
    assert (status, "(memory_limit)" in said) == (3, True), said
    assert "0.6 GiB" in said
    assert not (tmp_path / "out").exists()


# --- GGUF ---------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICROSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def test_a_sound_gguf_file_is_read(tmp_path, cache) -> None:
    path = made_gguf(tmp_path / "m.gguf")
    header = check_gguf(path)
    real = gguf.GGUFReader(path)
    assert {t.name: tuple(int(n) for n in reversed(t.shape)) for t in real.tensors} == {
        name: tensor.shape for name, tensor in header.tensors.items()
    }
    assert {t.name: int(t.n_bytes) for t in real.tensors} == {n: t.size for n, t in header.tensors.items()}
    assert header.blocks == BLOCKS
    assert header.metadata["llama.embedding_length"] == WIDTH
    assert header.lengths["tokenizer.ggml.tokens"] == VOCAB
    folder = gguf_files.converted_folder(path)
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize(
    ("changes", "drop"),
    [
        ({"llama.block_count": 1_000_000}, ""),
        ({"llama.block_count": 0}, ""),
        ({"llama.block_count": None}, ""),
        ({"llama.block_count": "two"}, ""),
        ({"llama.block_count": True}, ""),
        ({"llama.block_count": 1}, ""),
        ({}, "blk.1."),
        ({}, "blk.1.attn_q"),
        ({}, "output_norm"),
        ({}, "blk.0.ffn_norm"),
        ({}, "token_embd"),
        ({"llama.embedding_length": 2**31}, ""),
        ({"llama.embedding_length": None}, ""),
        ({"llama.embedding_length": 16}, ""),
        ({"llama.feed_forward_length": 2**31}, ""),
        ({"llama.feed_forward_length": "wide"}, ""),
        ({"llama.attention.head_count": 0}, ""),
        ({"llama.attention.head_count": 3}, ""),
        ({"llama.attention.head_count": [1, 2, 3]}, ""),
        ({"llama.attention.head_count": None}, ""),
        ({"llama.attention.head_count_kv": 7}, ""),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, ""),
        ({"llama.vocab_size": 2**31}, ""),
        ({"tokenizer.ggml.model": None}, ""),
        ({"tokenizer.ggml.model": "martian"}, ""),
        ({"tokenizer.ggml.tokens": None}, ""),
        ({"tokenizer.ggml.tokens": 5}, ""),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, ""),
        ({"tokenizer.ggml.merges": ["one"]}, ""),
        ({"tokenizer.ggml.merges": [1]}, ""),
        ({"tokenizer.ggml.bos_token_id": "first"}, ""),
        ({"general.alignment": 3}, ""),
        ({"general.alignment": 0}, ""),
        ({"general.alignment": "wide"}, ""),
    ],
)
def test_gguf_settings_that_do_not_suit(tmp_path, cache, changes, drop) -> None:
    path = made_gguf(tmp_path / "m.gguf", changes, drop)
    error = refusal(gguf_files.converted_folder, path)
    assert error.code == "bad_model_file"
    assert error.hint
    assert not cache.exists() or list(cache.iterdir()) == [], "nothing half-made stays"


def kv(key: bytes, kind: int, value: bytes, *, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(key) if length is None else length) + key + struct.pack("<I", kind) + value


def raw_gguf(path: Path, body: bytes, *, version: int = 3, tensors: int = 0, keys: int = 1) -> Path:
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body)
    return path


NAMED = kv(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama")


def tensor_entry(
    name: bytes = b"a", sides: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, rank: int | None = None
) -> bytes:
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sides) if rank is None else rank)
    return head + struct.pack(f"<{len(sides)}QIQ", *sides, kind, offset)


@pytest.mark.parametrize(
    ("body", "options"),
    [
        (b"", {"keys": 0}),
        (b"", {"keys": 2**63}),
        (b"", {"keys": 0, "tensors": 2**63}),
        (b"", {"version": 0}),
        (b"", {"version": 1}),
        (b"", {"version": 2**31}),
        (NAMED, {"version": 0x03000000}),
        (kv(b"a", 8, struct.pack("<Q", 2**63)), {}),
        (kv(b"a", 8, struct.pack("<Q", 2**40)), {}),
        (kv(b"a", 4, b"\0\0\0\0", length=2**60), {}),
        (kv(b"a", 99, b"\0\0\0\0"), {}),
        (kv(b"a", 4, b"\0"), {}),
        (kv(b"\xff\xfe", 4, bytes(4)), {}),
        (kv(b"a", 9, struct.pack("<IQ", 4, 2**62)), {}),
        (kv(b"a", 9, struct.pack("<IQ", 8, 2**62)), {}),
        (kv(b"a", 9, struct.pack("<IQ", 8, 1000)), {}),
        (kv(b"a", 9, struct.pack("<IQ", 9, 1)), {}),
        (kv(b"a", 9, struct.pack("<IQ", 9, 1) * 5000), {}),
        (kv(b"a", 9, struct.pack("<IQ", 55, 1)), {}),
        (NAMED + NAMED, {"keys": 2}),
        (NAMED + tensor_entry(), {"tensors": 1}),
        (NAMED + tensor_entry(rank=2**31), {"tensors": 1}),
        (NAMED + tensor_entry(sides=()), {"tensors": 1}),
        (NAMED + tensor_entry(sides=(1,) * 9), {"tensors": 1}),
        (NAMED + tensor_entry(sides=(2**63, 2**63)), {"tensors": 1}),
        (NAMED + tensor_entry(sides=(0,)), {"tensors": 1}),
        (NAMED + tensor_entry(kind=77) + bytes(999), {"tensors": 1}),
        (NAMED + tensor_entry(kind=2, sides=(31,)) + bytes(999), {"tensors": 1}),
        (NAMED + tensor_entry(offset=2**63) + bytes(999), {"tensors": 1}),
        (NAMED + tensor_entry(offset=5) + bytes(999), {"tensors": 1}),
        (NAMED + tensor_entry() + tensor_entry() + bytes(999), {"tensors": 2}),
        (NAMED + tensor_entry(b"a") + tensor_entry(b"b") + bytes(999), {"tensors": 2}),
        (NAMED + tensor_entry(b"x" * 300) + bytes(999), {"tensors": 1}),
    ],
)
def test_gguf_headers_that_lie(tmp_path, body, options) -> None:
    path = raw_gguf(tmp_path / "m.gguf", body, **options)
    assert refusal(check_gguf, path).code == "bad_model_file"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_cut_gguf_file_is_incomplete(tmp_path, share) -> None:
    raw = made_gguf(tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(raw[: int(len(raw) * share)])
    assert refusal(check_gguf, tmp_path / "m.gguf").code in ("bad_model_file", "wrong_file_type")


# --- real files, mutated ------------------------------------------------------------------------------


def seeds(folder: Path) -> dict[str, bytes]:
    """A sound file of each kind."""
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(4)}, folder / "a.safetensors")
    pq.write_table(table(), folder / "a.parquet", data_page_size=500)
    np.savez(folder / "a.npz", W=np.zeros(5))
    (folder / "a.json").write_text(json.dumps({"k": [1, {"x": "y", "z": [1.5, None, True]}]}))
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/y", b"12345" * 30)
        archive.writestr("z", b"")
    made_gguf(folder / "a.gguf")
    return {path.suffix: path.read_bytes() for path in folder.glob("a.*")}


def mutated(data: bytes, rng: random.Random, header: int) -> bytes:
    """A few changes, most of them where the headers are: at the start and at the end."""
    out = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        near = rng.randrange(3)
        place = rng.randrange(max(len(out), 1))
        if near == 0:
            place = rng.randrange(min(header, len(out)) or 1)
        elif near == 1:
            place = max(0, len(out) - 1 - rng.randrange(min(header, len(out)) or 1))
        match rng.randrange(7):
            case 0:
                out[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 2:
                out[place:place] = rng.randbytes(rng.randrange(1, 12))
            case 3:
                del out[place : place + rng.randrange(1, 40)]
            case 4:
                out[place : place + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32, 2**63, 2**64 - 1]))
            case 5:
                out[place : place + 4] = struct.pack("<I", rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]))
            case _:
                out = out[: max(place, 1)]
    return bytes(out)


TRY = """
import re, sys, pathlib
from tests.unit.test_hostile_files import try_mutations
try_mutations(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
# of this program alone: getrusage also counts the test runner's memory, which a child has until it runs another
print(int(re.findall(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[0]) // 1024)
"""


def try_mutations(folder: Path, count: int) -> None:
    """Run by :func:`test_mutated_files` in a process of its own, which may die of one."""
    import pyarrow as pa

    sound = seeds(folder)
    for number in range(count * len(sound)):
        suffix = sorted(sound)[number % len(sound)]
        path = folder / f"mutated{suffix}"
        path.write_bytes(mutated(sound[suffix], random.Random(number), 2500))
        try:
            if suffix == ".zip":
                out = folder / f"out{number}"
                out.mkdir()
                extract_zip(path, out, max_bytes=10**6)
            elif suffix == ".gguf":
                check_gguf(path)
                gguf.GGUFReader(path)  # what passed, the real library can walk
            else:
                check_file(path, path.name)
                if suffix == ".parquet":
                    # Damaged data may be refused while they are read, by the one who reads them.
                    with contextlib.suppress(pa.ArrowException, OSError, ValueError, OverflowError):
                        for batch in pq.ParquetFile(path, buffer_size=MIB).iter_batches(
                            256, columns=["text"]
                        ):
                            batch.to_pylist()
        except MicroscopeError:
            pass
        except Exception as error:
            raise AssertionError(f"mutation {number}{suffix}: {type(error).__name__}: {error}") from error


@pytest.mark.timeout(1800)
def test_mutated_files(tmp_path) -> None:
    """Hundreds of each kind: nothing but refusals, no crash of a library, no memory to speak of."""
    done = subprocess.run(
        [sys.executable, "-c", TRY, str(tmp_path), str(MUTATIONS)],
        capture_output=True,
        text=True,
        # As much as a job gets that takes files in, and no more.
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (4096 * MIB, 4096 * MIB)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) < 1500, "MiB at most"
