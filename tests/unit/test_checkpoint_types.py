"""Weight files of any model type: read whole under the names files have, or refused by the name of what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import load_model
from tests.families.tiny import make_any

WEIGHTS = "model.safetensors"
TYPES = (
    *("mixtral", "phi3", "olmo2", "falcon", "opt", "bloom", "gptj", "stablelm", "cohere", "granite", "glm"),
    *("smollm3", "gpt_oss", "mamba", "jamba", "qwen3_moe", "deepseek_v3", "zamba2", "llama4_text", "rwkv"),
)
EXPERTS = ("mixtral", "qwen3_moe", "deepseek_v3", "jamba")
Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]
_made: dict[str, Path] = {}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    def make(model_type: str) -> Path:
        if model_type not in _made:
            _made[model_type] = make_any(model_type, tmp_path_factory.mktemp(model_type) / "model")
        return _made[model_type]

    yield make
    _made.clear()


@pytest.fixture
def changed(original, tmp_path):
    """A copy of a tiny model whose stored weights a function changes."""

    def make(model_type: str, change: Change) -> Path:
        folder = Path(shutil.copytree(original(model_type), tmp_path / f"{len(list(tmp_path.iterdir()))}"))
        tensors = {name: t.clone().contiguous() for name, t in change(load_file(folder / WEIGHTS)).items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        return folder

    return make


def fingerprint(folder: Path) -> str:
    return load_model(str(folder), dtype="float32", device="cpu").fingerprint


def refused(folder: Path, *words: str, code: str = "bad_model_file") -> None:
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(folder), dtype="float32", device="cpu")
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    assert caught.value.hint


def stored_in_three(folder: Path) -> Path:
    tensors = load_file(folder / WEIGHTS)
    places = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: tensors[name] for name in sorted(tensors)[number::3]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def in_a_block(tensors: dict[str, Tensor], number: int) -> list[str]:
    return [name for name in tensors if re.search(rf"(^|\.){number}\.", name)]


@pytest.mark.parametrize("model_type", TYPES)
def test_every_weight_is_read_from_one_file_from_several_and_under_names_of_wrappers(
    model_type, original, changed
):
    loaded = load_model(str(original(model_type)), dtype="float32", device="cpu")
    right = loaded.fingerprint
    assert loaded.n_layers == len(loaded.model.get_submodule(loaded.family.blocks))
    assert fingerprint(stored_in_three(changed(model_type, dict))) == right
    wrapped = changed(model_type, lambda t: {f"module._orig_mod.{name}": v for name, v in t.items()})
    assert fingerprint(wrapped) == right


@pytest.mark.parametrize("model_type", TYPES)
def test_what_a_file_lacks_or_has_beyond_the_model_is_named(model_type, original, changed):
    names = sorted(load_file(original(model_type) / WEIGHTS))
    norm = next(name for name in names if "norm" in name or ".ln" in name)
    lacking = changed(model_type, lambda t: {k: v for k, v in t.items() if k != norm})
    refused(lacking, "in no file", norm.rsplit(".", 2)[-2])
    more = changed(model_type, lambda t: {**t, f"{names[-1]}.more": torch.ones(2)})
    refused(more, "unknown to the model", ".more")
    diverged = changed(model_type, lambda t: {**t, norm: t[norm] * torch.nan})
    refused(diverged, "NaN")


@pytest.mark.parametrize("model_type", TYPES)
def test_blocks_behind_the_last_one_are_no_other_weights(model_type, original, changed):
    last = load_model(str(original(model_type)), dtype="float32", device="cpu").n_layers - 1

    def with_another(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        more = {
            re.sub(rf"(^|\.){last}\.", rf"\g<1>{last + 1}.", name, count=1): tensors[name]
            for name in in_a_block(tensors, last)
            if "experts" not in name
        }
        return {**tensors, **more}

    refused(changed(model_type, with_another), f"asks for {last + 1} blocks", f"have weights of {last + 2}")


@pytest.mark.parametrize("model_type", EXPERTS)
def test_experts_are_counted_before_they_are_joined(model_type, changed):
    """Those behind a gap would take the places of those that are missing, with a tensor of the right size."""

    def numbered(tensors: dict[str, Tensor], old: int, new: int, part: str = "") -> dict[str, Tensor]:
        block = max(re.search(r"\.(\d+)\..*experts\.\d", name)[1] for name in tensors if "experts.0" in name)
        return {
            name.replace(f"experts.{old}.", f"experts.{new}.")
            if f".{block}." in name and name.endswith(part)
            else name: value
            for name, value in tensors.items()
        }

    refused(changed(model_type, lambda t: numbered(t, 3, 4)), "experts", "0, 1, 2, 4")
    refused(changed(model_type, lambda t: numbered(t, 1, 7)), "experts", "0, 2, 3, 7")
    names = numbered({"x.1.experts.0.w": torch.ones(1)}, 0, 5)
    assert names.keys() == {"x.1.experts.5.w"}

    def without(tensors: dict[str, Tensor], *experts: str) -> dict[str, Tensor]:
        return {k: v for k, v in tensors.items() if not any(f"experts.{e}." in k for e in experts)}

    refused(changed(model_type, lambda t: without(t, "3")), "experts", "the configuration asks for 4")

    def without_one_matrix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        gone = next(name for name in sorted(tensors) if re.search(r"experts\.2\.", name))
        return {k: v for k, v in tensors.items() if k != gone}

    refused(changed(model_type, without_one_matrix), "experts", "0, 1, 3")


def test_the_same_weight_twice_is_refused_where_names_are_rewritten(changed):
    """transformers would take one of the two."""
    twice = "model.layers.0.mlp.experts.down_proj"

    def doubled(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        experts = [
            tensors[f"model.layers.0.block_sparse_moe.experts.{number}.w2.weight"] for number in range(4)
        ]
        return {**tensors, twice: torch.stack(experts)}

    refused(changed("mixtral", doubled), "the same weight")


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss", "deepseek_v3"])
def test_names_in_memory_are_read_as_well_as_those_in_files(model_type, original, tmp_path):
    """Weights that were saved by another program from a loaded model."""
    loaded = load_model(str(original(model_type)), dtype="float32", device="cpu")
    folder = Path(shutil.copytree(original(model_type), tmp_path / "copy"))
    state = {name: t.clone().contiguous() for name, t in loaded.model.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    assert fingerprint(folder) == loaded.fingerprint


def test_types_of_numbers_may_be_mixed_and_none_is_lost(changed):
    def mixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        exact = {name: t.bfloat16().float().half().float() for name, t in tensors.items()}
        return {name: t.to(kinds[number % 4]) for number, (name, t) in enumerate(sorted(exact.items()))}

    one, other = (
        changed("mixtral", mixed),
        changed("mixtral", lambda t: {k: v.float() for k, v in mixed(t).items()}),
    )
    first, second = (
        load_model(str(f), dtype="float32", device="cpu").model.state_dict() for f in (one, other)
    )
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert {t.dtype for t in first.values()} == {torch.float32}


def test_tables_of_whole_numbers_are_read_where_the_model_has_them(original, changed):
    """Routing by token (DeepSeek-V4) is such a table; a table in floating point or a weight in whole numbers is not."""
    name = next(n for n in load_file(original("deepseek_v4") / WEIGHTS) if n.endswith("tid2eid"))
    refused(changed("deepseek_v4", lambda t: {**t, name: t[name].float()}), "tid2eid", "F32")
    weight = "model.layers.0.block_sparse_moe.gate.weight"
    refused(changed("mixtral", lambda t: {**t, weight: t[weight].to(torch.int8)}), "I8")


def test_what_older_versions_stored_beside_weights_is_left_alone(original, changed):
    old: dict[str, dict[str, Tensor]] = {
        "gptj": {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.ones(())},
        "bloom": {"transformer.h.0.self_attention.masked_bias": torch.ones(())},
        "mixtral": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)},
        "phi3": {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)},
    }  # fmt: skip
    for model_type, more in old.items():
        assert fingerprint(changed(model_type, lambda t, more=more: {**t, **more})) == fingerprint(
            original(model_type)
        )


def test_blocks_that_predict_further_tokens_are_no_blocks_of_the_model(original, changed):
    """Published DeepSeek-V3 and GLM files have one behind the last; it is marked by weights of its own."""

    def deeper(tensors: dict[str, Tensor], *, marked: bool) -> dict[str, Tensor]:
        again = {
            name.replace("layers.3.", "layers.61."): tensors[name]
            for name in tensors
            if name.startswith("model.layers.3.") and "experts" not in name
        }
        mark = {"model.layers.61.eh_proj.weight": torch.ones(32, 64)} if marked else {}
        return {**tensors, **again, **mark}

    marked = changed("deepseek_v3", lambda t: deeper(t, marked=True))
    assert fingerprint(marked) == fingerprint(original("deepseek_v3"))
    refused(changed("deepseek_v3", lambda t: deeper(t, marked=False)), "asks for 4 blocks")


def test_weights_that_blocks_share_are_one(original, changed):
    """Zamba's attention blocks share their matrices: two that differ in the files are not taken for one."""
    tensors = load_file(original("zamba2") / WEIGHTS)
    shared = next((n for n in tensors if "shared_transformer" in n and n.endswith("o_proj.weight")), None)
    assert shared is not None, sorted(tensors)[:8]
    other = re.sub(r"layers\.(\d+)", lambda m: f"layers.{4 - int(m[1])}", shared)
    assert other != shared
    refused(changed("zamba2", lambda t: {**t, other: t[shared] + 1}), "one weight", "two that differ")


def test_hundreds_of_blocks_are_asked_of_the_files_before_any_is_built(original, changed):
    folder = changed("mamba", dict)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 4000}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "asks for 4000 blocks", "have weights of 4")


# Values of four bits in the numbering of mxfp4, and the bias of a scale's exponent.
FOUR_BITS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
BIAS = 127


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts in four bits with a scale for every 32, as gpt-oss is published."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, t in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = t.shape
            shape = (experts, outputs, inputs // 32)
            found[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
            found[f"{name}_scales"] = torch.randint(120, 124, shape, dtype=torch.uint8, generator=generator)
        else:
            found[name] = t
    return found


def as_published(folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "mxfp4"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_packed_experts_are_unpacked_exactly(original, changed):
    folder = as_published(changed("gpt_oss", packed))
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    stored = packed(load_file(original("gpt_oss") / WEIGHTS))
    name = "model.layers.2.mlp.experts.down_proj"
    blocks, scales = stored[f"{name}_blocks"].long(), stored[f"{name}_scales"].float()
    values = torch.stack((FOUR_BITS[blocks & 15], FOUR_BITS[blocks >> 4]), -1).flatten(-2)
    right = (values * torch.exp2(scales - BIAS)[..., None]).flatten(-2).transpose(1, 2)
    assert torch.equal(loaded.model.get_parameter(name), right)
    assert load_model(str(folder), dtype="bfloat16", device="cpu").fingerprint == loaded.fingerprint
    with pytest.raises(MicroscopeError, match="bfloat16") as caught:
        load_model(str(folder), dtype="int8", device="cpu")
    assert caught.value.code == "quantised_files"


def test_packed_experts_are_whole_and_said_to_be_packed(changed):
    gone = "model.layers.1.mlp.experts.gate_up_proj_scales"
    half = changed("gpt_oss", lambda t: {k: v for k, v in packed(t).items() if k != gone})
    refused(as_published(half), "experts.gate_up_proj", "scales are in no file")
    refused(changed("gpt_oss", packed), "quantised")
    other = changed("gpt_oss", packed)
    config = json.loads((other / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "gptq"}
    }
    (other / "config.json").write_text(json.dumps(config))
    refused(other, "gptq", code="quantised_files")
