"""GGUF files made to hurt are refused in words, within bounded memory and time."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import pytest

from microscope.models import gguf_files
from microscope.quarantine.gguf import check_gguf
from tests.refusals import refusal
from tests.tiny_gguf import BLOCKS, VOCAB, WIDTH, made_gguf

MIB = 2**20


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
