"""GGUF files as models: what is read is the whole file, and of what is refused nothing stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from microscope.errors import MicroscopeError
from microscope.models import load_model
from tests.tiny_gguf import made_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MICROSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def rewritten(source: Path, target: Path, *, more=None, tensors=None, **settings: Any) -> Path:
    """A copy with other settings and tensors, written by the gguf library."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = field.contents()
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, kind, sub)
    for name, value in settings.items():
        key = name.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint16(key, value)
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if tensors is not None:
            data = tensors(tensor.name, data)
        if data is not None:
            writer.add_tensor(tensor.name, data)
    for name, data in (more or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def refused(file: Path, cache: Path, *words: str) -> None:
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(file), dtype="float32", device="cpu")
    for word in words:
        assert word in str(caught.value), caught.value
    assert caught.value.hint
    assert not cache.exists() or not list(cache.iterdir()), "something of a refused file stays"


def test_a_whole_file_is_the_same_model_on_every_load(tmp_path, cache):
    file = made_gguf(tmp_path / "m.gguf")
    first = load_model(str(file), dtype="float32", device="cpu").fingerprint
    assert load_model(str(file), dtype="float32", device="cpu").fingerprint == first
    (kept,) = cache.iterdir()
    about = json.loads((kept / "source.json").read_text())
    assert about["checked"]
    # A conversion that was kept before lost weights were looked for is made again.
    del about["checked"]
    (kept / "source.json").write_text(json.dumps(about))
    (kept / "config.json").write_text("{}")
    assert load_model(str(file), dtype="float32", device="cpu").fingerprint == first


REFUSED: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "a part": (("3 parts", "--merge"), {"split__count": 3}),
    "an adapter": (("adapter",), {"general__type": "adapter"}),
    "scaled positions": (("scaled",), {"llama__rope__scaling__type": "yarn", "llama__rope__scaling__factor": 4.0}),
    "factors of positions": (("rope_freqs",), {"more": {"rope_freqs.weight": np.ones(4, np.float32)}}),
    "a tensor that nobody reads": (("tensors",), {"more": {"blk.0.attn_q.bias": np.ones(32, np.float32)}}),
    "a missing tensor": (("weights",), {"tensors": lambda n, d: None if n == "blk.1.ffn_up.weight" else d}),
    "a missing norm": (("norm",), {"tensors": lambda n, d: None if n == "output_norm.weight" else d}),
    "NaN": (("NaN",), {"tensors": lambda n, d: d * np.float32("nan") if n == "output_norm.weight" else d}),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_files_that_are_no_whole_model_are_refused(what, tmp_path, cache):
    words, changes = REFUSED[what]
    refused(rewritten(made_gguf(tmp_path / "m.gguf"), tmp_path / "changed.gguf", **changes), cache, *words)


def test_a_plain_copy_is_accepted(tmp_path, cache):
    """So that the refusals above are of what was changed."""
    file = made_gguf(tmp_path / "m.gguf")
    copy = rewritten(file, tmp_path / "copy.gguf", llama__rope__scaling__type="none")
    first, second = (load_model(str(f), dtype="float32", device="cpu").fingerprint for f in (file, copy))
    assert first == second


def test_pointers_and_other_architectures(tmp_path, cache):
    (tmp_path / "m.gguf").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    )
    refused(tmp_path / "m.gguf", cache, "lfs pull")
    file = made_gguf(tmp_path / "real.gguf")
    data = file.read_bytes()
    (tmp_path / "other.gguf").write_bytes(data.replace(b"llama", b"rwkv6"))
    refused(tmp_path / "other.gguf", cache, "rwkv6", "From GGUF")
