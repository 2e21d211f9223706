"""GGUF files of every architecture that is converted: the same logits as the model they were written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers

from microscope.errors import MicroscopeError
from microscope.models import inspect_model, load_model
from microscope.models.gguf_files import converted_folder
from microscope.models.gguf_settings import check_settings, check_tensors
from microscope.quarantine.gguf import GgufHeader, read_gguf
from tests.gguf_kinds import KINDS, made
from tests.tiny_gguf import VOCAB


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MICROSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def refused(file: Path, *words: str, code: str = "bad_model_file") -> None:
    for look in (inspect_model, load_model):
        with pytest.raises(MicroscopeError) as caught:
            look(str(file))
        assert caught.value.code == code, caught.value
        for word in words:
            assert word in str(caught.value), caught.value
        assert caught.value.hint


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_file_computes_what_its_model_computes(kind, tmp_path):
    model = made(kind, tmp_path / "m.gguf")
    loaded = load_model(str(tmp_path / "m.gguf"), dtype="float32", device="cpu")
    assert type(loaded.model) is type(model)
    ids = torch.randint(3, VOCAB, (1, 24), generator=torch.Generator().manual_seed(0))
    right = model(ids).logits
    assert float((loaded.model(ids).logits - right).abs().max()) <= 1e-4 * float(right.abs().max())


LOST: dict[str, tuple[str, dict[str, Any], str]] = {
    "scale of a soft cap": ("gemma2", {"attn_logit_softcapping": 20.0}, "attn_logit_softcapping"),
    "a soft cap of the head": ("gemma2", {"final_logit_softcapping": 15.0}, "final_logit_softcapping"),
    "a base of rotations": ("starcoder2", {"rope.freq_base": 999_999.0}, "rope.freq_base"),
    "a part of heads that is rotated": ("phi3", {"rope.dimension_count": 4}, "rope.dimension_count"),
    "a window": ("phi3", {"attention.sliding_window": 2047}, "sliding_window"),
    "a width of heads": ("qwen2", {"attention.key_length": 16}, "key_length"),
    "experts": ("llama", {"expert_count": 8, "expert_used_count": 2}, "experts"),
    "another width of experts": ("qwen3moe", {"expert_feed_forward_length": 512}, "expert_feed_forward_length"),
    "an epsilon": ("falcon", {"attention.layer_norm_epsilon": 1e-3}, "layer_norm_epsilon"),
    "parallel blocks": ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual"),
    "norms within a recurrence": ("mamba", {"ssm.dt_b_c_rms": True}, "dt_b_c_rms"),
    "a scale of logits": ("llama", {"logit_scale": 0.5}, "logit_scale"),
    "what nobody knows": ("qwen2", {"some.new_setting": 3}, "some.new_setting"),
    "what sees both ways": ("qwen3", {"attention.causal": False}, "attention.causal"),
    "scaled rotations": ("gemma3", {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}, "scaled"),
    "a list": ("gemma3", {"attention.sliding_window_pattern": [True, False, True]}, "sliding_window_pattern"),
}  # fmt: skip


@pytest.mark.parametrize("what", LOST)
def test_settings_that_conversion_would_lose_are_named(what, tmp_path, cache):
    kind, more, word = LOST[what]
    made(kind, tmp_path / "m.gguf", more=more)
    refused(tmp_path / "m.gguf", word)
    assert not list(cache.iterdir()), "something of a refused file stays"


def test_settings_that_change_nothing_are_no_obstacle(tmp_path):
    made(
        "llama",
        tmp_path / "m.gguf",
        more={
            "attention.key_length": 8,
            "attention.value_length": 8,
            "attention.causal": True,
            "expert_count": 0,
            "tensor_data_layout": "Meta AI original pth",
            "rope.scaling.type": "none",
        },
    )
    assert load_model(str(tmp_path / "m.gguf"), device="cpu").n_layers == 2


@pytest.mark.parametrize(("kind", "depth"), [("gemma2", 46), ("gemma3", 62)])
def test_the_largest_gemmas_scale_attention_by_what_no_setting_says(kind, depth):
    config = getattr(transformers, KINDS[kind].config)(num_hidden_layers=2)
    for blocks, raises in ((depth, True), (26, False)):
        metadata = {"general.architecture": kind, f"{kind}.block_count": blocks}
        header = GgufHeader(metadata, {}, {})
        if raises:
            with pytest.raises(MicroscopeError, match="scaled otherwise"):
                check_settings(header, config, "m.gguf")
        else:
            check_settings(header, config, "m.gguf")


@pytest.mark.parametrize(
    ("kind", "tensor"),
    [
        ("qwen3moe", "blk.1.ffn_up_exps.weight"),
        ("qwen3moe", "blk.0.ffn_gate_exps.weight"),
        ("qwen2moe", "blk.0.ffn_gate_inp_shexp.weight"),
        ("mamba", "blk.1.ssm_d"),
        ("bloom", "blk.0.attn_qkv.bias"),
        ("gpt2", "position_embd.weight"),
        ("starcoder2", "blk.1.ffn_down.bias"),
    ],
)
def test_tensors_that_are_missing_are_named(kind, tensor, tmp_path):
    made(kind, tmp_path / "m.gguf", without=tensor)
    refused(tmp_path / "m.gguf", "weights")


def test_half_of_an_expert_is_no_expert(tmp_path):
    """What transformers makes of it are zeros, and no weight is reported missing."""
    file = tmp_path / "m.gguf"
    made("qwen3moe", file)
    header, folder = read_gguf(file), converted_folder(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    check_tensors(header, model, "m.gguf")
    up = header.tensors.pop("blk.1.ffn_up_exps.weight")
    with pytest.raises(MicroscopeError, match=r"no tensor blk\.1\.ffn_up_exps"):
        check_tensors(header, model, "m.gguf")
    header.tensors["blk.1.ffn_upper_exps.weight"] = up
    with pytest.raises(MicroscopeError, match=r"no place for .*blk\.1\.ffn_upper_exps"):
        check_tensors(header, model, "m.gguf")


def split(file: Path, parts: int) -> list[Path]:
    """The same model in several files, as llama-gguf-split writes them."""
    reader = gguf.GGUFReader(file)
    found = []
    for number in range(parts):
        path = file.with_name(f"model-{number + 1:05}-of-{parts:05}.gguf")
        writer = gguf.GGUFWriter(path, "llama" if number == 0 else "")
        writer.kv_data = [{}]
        for name, entry in reader.fields.items() if number == 0 else ():
            if not name.startswith("GGUF."):
                kind = entry.types[0]
                inner = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(name, entry.contents(), kind, inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[number::parts]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        found.append(path)
    file.unlink()
    return found


@pytest.mark.parametrize("kind", ["llama", "qwen3moe"])
def test_any_part_of_a_split_model_stands_for_all(kind, tmp_path, cache):
    made(kind, tmp_path / "m.gguf")
    right = load_model(str(tmp_path / "m.gguf"), dtype="float32", device="cpu").fingerprint
    parts = split(tmp_path / "m.gguf", 3)
    for part in parts:
        assert load_model(str(part), dtype="float32", device="cpu").fingerprint == right
    assert len(list(cache.iterdir())) == 2
    second = parts[1].read_bytes()
    parts[1].unlink()
    refused(parts[0], parts[1].name, "not beside it")
    parts[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    refused(parts[2], parts[1].name, "Git LFS pointer")
    parts[1].write_bytes(second[:-40])
    refused(parts[0], parts[1].name, "incomplete")
    parts[1].write_bytes(parts[2].read_bytes())
    refused(parts[0], "in two of its parts")


def test_files_of_images_are_called_so(tmp_path):
    for settings in ({"general.type": "mmproj"}, {}):
        writer = gguf.GGUFWriter(tmp_path / "mmproj.gguf", "clip")
        for name, value in settings.items():
            writer.add_string(name, value)
        writer.add_uint32("clip.vision.block_count", 2)
        writer.add_tensor("v.patch_embd.weight", np.zeros((4, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused(tmp_path / "mmproj.gguf", "mmproj", "language model that belongs")


@pytest.mark.parametrize(("architecture", "word"), [("t5", "encoder–decoder"), ("grok", "From GGUF")])
def test_other_architectures(architecture, word, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path / "m.gguf", word, code="unsupported_family")
