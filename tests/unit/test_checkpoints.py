"""Weight files of others: complete and understood, or refused by the name of what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, LlamaForCausalLM

from microscope.errors import MicroscopeError
from microscope.models import inspect_model, load_model
from microscope.models.configuration import MAX_BLOCKS
from tests.tiny_models import make_model

WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"


def fingerprint(folder: Path) -> str:
    return load_model(str(folder), dtype="float32", device="cpu").fingerprint


def refused(folder: Path, *words: str) -> MicroscopeError:
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(folder), dtype="float32", device="cpu")
    assert caught.value.code == "bad_model_file"
    for word in words:
        assert word in str(caught.value), caught.value
    assert caught.value.hint
    return caught.value


@pytest.fixture
def copy(model_folders, tmp_path):
    """A copy of a tiny model whose weights and configuration a function changes."""

    def make(kind: str, change=None, **settings: Any) -> Path:
        folder = Path(
            shutil.copytree(model_folders[kind], tmp_path / f"model{len(list(tmp_path.iterdir()))}")
        )
        if change is not None:
            tensors = {k: v.clone().contiguous() for k, v in change(load_file(folder / WEIGHTS)).items()}
            save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if settings:
            config = json.loads((folder / "config.json").read_text()) | settings
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


def sharded(folder: Path) -> Path:
    """The same weights in three files with an index."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    places = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        part = {name: tensors[name] for name in names[number::3]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def within(part: str, wrapper: str):
    return lambda t: {k.replace(part, f"{wrapper}.{part}"): v for k, v in t.items()}


WRAPPED = {
    "torch.compile": lambda t: {"_orig_mod." + k: v for k, v in t.items()},
    "DDP": lambda t: {"module." + k: v for k, v in t.items()},
    "DDP of a compiled model": lambda t: {"module._orig_mod." + k: v for k, v in t.items()},
    "PEFT": lambda t: {"base_model.model." + k: v for k, v in t.items()},
    "compiled PEFT": lambda t: {"_orig_mod.base_model.model." + k: v for k, v in t.items()},
    "a trainer's module": lambda t: {"model." + k: v for k, v in t.items()},
    "two of them": lambda t: {"model.model." + k: v for k, v in t.items()},
    "FSDP": lambda t: {"_fsdp_wrapped_module." + k: v for k, v in t.items()},
    "FSDP around blocks": within("self_attn.", "_fsdp_wrapped_module"),
    "checkpointed blocks": within("mlp.", "_checkpoint_wrapped_module"),
    "compiled MLPs": within("mlp.", "_orig_mod"),
    "another wrapper": lambda t: {"policy.net." + k: v for k, v in t.items()},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_names_that_wrappers_left_are_understood(copy, model_folders, wrapper):
    folder = copy("llama", WRAPPED[wrapper])
    assert fingerprint(folder) == fingerprint(folder) == fingerprint(model_folders["llama"])
    sharded(folder)
    assert fingerprint(folder) == fingerprint(model_folders["llama"])


@pytest.mark.parametrize("kind", ["gpt2", "gemma3", "gpt_neox", "bert", "roberta", "qwen3"])
def test_wrapped_names_of_every_family(copy, model_folders, kind):
    for wrapper in ("torch.compile", "PEFT", "a trainer's module"):
        assert fingerprint(copy(kind, WRAPPED[wrapper])) == fingerprint(model_folders[kind])


def test_a_wrapped_model_loads_in_every_precision(copy, model_folders):
    for dtype in ("bfloat16", "int8"):
        found, right = (
            load_model(str(f), dtype=dtype, device="cpu").fingerprint
            for f in (copy("llama", WRAPPED["PEFT"]), model_folders["llama"])
        )
        assert found == right


LACKING = {
    "one MLP": ("model.layers.2.mlp", lambda t: {k: v for k, v in t.items() if "layers.2.mlp" not in k}),
    "one norm": ("model.norm.weight", lambda t: {k: v for k, v in t.items() if k != "model.norm.weight"}),
    "the head": ("tie_word_embeddings", lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}),
    "the embedding": ("embed_tokens", lambda t: {k: v for k, v in t.items() if "embed_tokens" not in k}),
    "a whole block": ("4 blocks", lambda t: {k: v for k, v in t.items() if ".layers.3." not in k}),
    "everything": ("4 blocks", lambda t: {"x": torch.ones(1)}),
    "a name": ("q_projection", lambda t: {k.replace("1.self_attn.q_proj", "1.self_attn.q_projection"): v for k, v in t.items()}),
    "bias": ("q_proj.bias", lambda t: {**t, "model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
    "an adapter inside": ("merge", lambda t: {**t, "model.layers.0.self_attn.q_proj.lora_A.default.weight": torch.ones(2, 32)}),
    "quantised": ("quantised", lambda t: {**t, "model.layers.0.self_attn.q_proj.qweight": torch.ones(2, 32)}),
    "a shape": ("31 × 32", lambda t: {k: (v[:31] if k == "model.layers.1.self_attn.o_proj.weight" else v) for k, v in t.items()}),
    "a vocabulary": ("250 × 32", lambda t: {k: (v[:250] if "embed" in k else v) for k, v in t.items()}),
    "NaN": ("NaN", lambda t: {k: (v * torch.nan if k == "model.norm.weight" else v) for k, v in t.items()}),
    "infinity": ("layers.3.mlp.up_proj", lambda t: {k: (torch.where(v == v.max(), torch.inf, v) if k == "model.layers.3.mlp.up_proj.weight" else v) for k, v in t.items()}),
    "whole numbers": ("I8", lambda t: {k: (v.to(torch.int8) if "1.mlp.up_proj" in k else v) for k, v in t.items()}),
    "truth values": ("BOOL", lambda t: {k: (v > 0 if k == "lm_head.weight" else v) for k, v in t.items()}),
    "two of one": ("same weight", lambda t: {**t, "norm.weight": t["model.norm.weight"]}),
}  # fmt: skip


@pytest.mark.parametrize("what", LACKING)
def test_weights_that_do_not_fit_are_refused_by_name(copy, what):
    word, change = LACKING[what]
    folder = copy("llama", change)
    refused(folder, word)
    if what not in ("two of one",):
        refused(copy("llama", lambda t: WRAPPED["DDP"](change(t))), word)


def test_overflow_of_the_chosen_precision_is_seen(copy):
    folder = copy("llama", lambda t: {k: (v * 1e6 if k == "model.norm.weight" else v) for k, v in t.items()})
    assert fingerprint(folder)
    with pytest.raises(MicroscopeError, match="float16"):
        load_model(str(folder), dtype="float16", device="cpu")


def test_more_or_fewer_blocks_than_the_configuration_names(copy):
    refused(copy("llama", num_hidden_layers=3), "3 blocks", "4")
    refused(copy("gpt2", n_layer=6), "6 blocks", "4")


def test_ties_and_heads(copy, model_folders, tmp_path):
    """One of two tied weights is enough; equal ones are one; different ones contradict the configuration."""
    embed = "model.embed_tokens.weight"
    refused(copy("llama", tie_word_embeddings=True), "tie_word_embeddings")
    equal = copy("llama", lambda t: {**t, "lm_head.weight": t[embed]}, tie_word_embeddings=True)
    alone = copy(
        "llama", lambda t: {k: v for k, v in t.items() if k != "lm_head.weight"}, tie_word_embeddings=True
    )
    swapped = copy(
        "llama",
        lambda t: {("lm_head.weight" if k == embed else k): v for k, v in t.items() if k != "lm_head.weight"},
        tie_word_embeddings=True,
    )
    assert fingerprint(equal) == fingerprint(alone) == fingerprint(swapped)
    untied = copy("llama", lambda t: {**t, "lm_head.weight": t[embed]})
    assert fingerprint(untied) == fingerprint(equal)


def test_what_older_versions_stored_beside_weights_is_left_alone(copy, model_folders):
    old = {
        "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "v_head.summary.weight": torch.ones(1)},
        "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8), "transformer.h.0.attn.masked_bias": torch.ones(())},
        "gpt_neox": {"gpt_neox.layers.0.attention.masked_bias": torch.ones(()), "gpt_neox.layers.1.attention.bias": torch.ones(1, 1, 4, 4)},
        "bert": {"cls.seq_relationship.weight": torch.ones(2, 32), "bert.pooler.dense.weight": torch.ones(32, 32), "bert.embeddings.position_ids": torch.ones(1, 128)},
        "roberta": {"classifier.dense.weight": torch.ones(32, 32)},
    }  # fmt: skip
    for kind, more in old.items():
        assert fingerprint(copy(kind, lambda t, more=more: {**t, **more})) == fingerprint(model_folders[kind])


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_encoders_without_a_prediction_head_are_the_same_on_every_load(model_folders, tmp_path, kind):
    """Sentence encoders are saved so. The head is never read; it becomes zeros, not random numbers."""
    AutoModel.from_pretrained(model_folders[kind]).save_pretrained(tmp_path)
    for file in model_folders[kind].glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    assert fingerprint(tmp_path) == fingerprint(tmp_path)
    broken = {k: v for k, v in load_file(tmp_path / WEIGHTS).items() if "encoder.layer.1.output" not in k}
    save_file(broken, tmp_path / WEIGHTS, metadata={"format": "pt"})
    refused(tmp_path, "encoder.layer.1.output")


def test_a_body_without_its_prefix_is_understood(copy, model_folders, tmp_path):
    tied = make_model("llama", tmp_path / "tied", tie_word_embeddings=True)
    right = fingerprint(tied)
    body = {k.removeprefix("model."): v for k, v in load_file(tied / WEIGHTS).items()}
    save_file(body, tied / WEIGHTS, metadata={"format": "pt"})
    assert fingerprint(tied) == right


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    "name",
    [
        WEIGHTS,
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "spiece.model",
        "generation_config.json",
    ],
)
def test_pointers_are_called_pointers(copy, name):
    folder = copy("llama")
    (folder / name).write_text(POINTER)
    assert "lfs pull" in refused(folder, name, "Git LFS pointer").hint


def test_shards(copy, model_folders):
    folder = sharded(copy("llama"))
    assert fingerprint(folder) == fingerprint(model_folders["llama"])
    second = folder / "model-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[:-100])
    refused(folder, second.name)
    second.write_text(POINTER)
    refused(folder, second.name, "pointer")
    second.unlink()
    refused(folder, second.name, "1 of 3")
    second.symlink_to(folder / "nowhere")
    refused(folder, second.name, "missing")
    second.unlink()
    part = {
        k: v for k, v in load_file(folder / "model-00001-of-00003.safetensors").items() if "norm" not in k
    }
    save_file(part, second)
    refused(folder, "is in model-00001")
    save_file({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, second)
    refused(folder, INDEX, "in no file")
    for text in (
        POINTER,
        "{",
        "[]",
        "{}",
        '{"weight_map": {"a": "../other.safetensors"}}',
        '{"weight_map": {"a": 3}}',
    ):
        (folder / INDEX).write_text(text)
        refused(folder, INDEX)
    (folder / INDEX).unlink()
    refused(folder, "model-00001-of-00003.safetensors")


def test_folders_without_weights(copy, tmp_path):
    folder = copy("llama")
    (folder / WEIGHTS).unlink()
    refused(folder, "no weights")
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "pickles")
    (folder / WEIGHTS).write_bytes(b"")
    refused(folder, WEIGHTS)
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(tmp_path / "nothing").rstrip("/"))
    assert caught.value.code == "unknown_model"
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    for text, base in (
        ("{}", "BASE_MODEL"),
        ("{", "BASE_MODEL"),
        ('{"base_model_name_or_path": "some/base"}', "some/base"),
    ):
        (tmp_path / "adapter" / "adapter_config.json").write_text(text)
        with pytest.raises(MicroscopeError) as caught:
            load_model(str(tmp_path / "adapter"))
        assert f"patch import --path {tmp_path / 'adapter'} --model {base}" in str(caught.value.hint)
    for name in ("mmproj-model.gguf", "the-model.gguf"):
        (tmp_path / "nothing").mkdir(exist_ok=True)
        (tmp_path / "nothing" / name).write_bytes(b"GGUF")
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(tmp_path / "nothing"))
    assert "the-model.gguf" in str(caught.value.hint)
    both = copy("llama")
    (both / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    refused(both, "adapter_config.json")


@pytest.mark.parametrize(
    "settings",
    [
        {"num_hidden_layers": 1_000_000},
        {"num_hidden_layers": 10**15},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -4},
        {"num_hidden_layers": "4"},
        {"num_hidden_layers": 4.5},
        {"vocab_size": 10**12},
        {"hidden_size": 10**9},
        {"intermediate_size": 10**12},
        {"max_position_embeddings": 10**18},
        {"num_attention_heads": 0},
        {"num_attention_heads": True},
        {"head_dim": 10**9},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 3},
        {"hidden_size": 64},
        {"vocab_size": 2**27, "hidden_size": 2**20},
        {"hidden_act": "no such function"},
        {"rope_parameters": {"rope_type": "no such", "rope_theta": 1e4}},
        {"rope_parameters": 3},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": -1e-6},
        {"rms_norm_eps": float("nan")},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": -1e4}},
        {"layer_types": ["full_attention"] * 3},
    ],
    ids=str,
)
@pytest.mark.timeout(60)
def test_configurations_that_no_model_has(copy, settings):
    for kind in ("llama", "qwen3"):
        folder = copy(kind, **settings)
        if kind == "llama" and "layer_types" in settings:
            continue  # that class passes over them
        with pytest.raises(MicroscopeError) as caught:
            load_model(str(folder), dtype="float32", device="cpu")
        assert caught.value.code in ("bad_model_file", "unsupported_configuration")


@pytest.mark.parametrize("text", ["{", "{}", "[]", None])
def test_a_broken_tokenizer_is_called_so(copy, text):
    folder = copy("llama")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    if text is not None:
        (folder / "tokenizer.json").write_text(text)
    error = refused(folder, "tokenizer")
    assert "tokenizer.json" in error.hint


def test_settings_with_a_byte_order_mark_say_what_to_do(copy):
    folder = copy("llama")
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    assert "byte order mark" in refused(folder, "config.json").hint


@pytest.mark.timeout(60)
def test_a_small_file_that_asks_for_a_huge_model_is_refused_before_anything_is_built(tmp_path):
    for model_type, blocks in (
        ("llama", "num_hidden_layers"),
        ("gpt2", "n_layer"),
        ("gemma3_text", "num_hidden_layers"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, blocks: 1_000_000}))
        for look in (inspect_model, load_model):
            with pytest.raises(MicroscopeError) as caught:
                look(str(tmp_path))
            assert caught.value.code == "bad_model_file"
            assert f"{MAX_BLOCKS:,}" in caught.value.message


def test_what_transformers_reports_of_a_load_is_read(model_folders, monkeypatch):
    """Weights that its own renaming lost are refused, too: here the report itself is what is tested."""
    real = LlamaForCausalLM.from_pretrained

    def report(*arguments: Any, **options: Any) -> Any:
        model, info = real(*arguments, **options)
        return model, info | {"missing_keys": {"model.norm.weight"}}

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", report)
    refused(model_folders["llama"], "model.norm.weight")


def test_a_model_in_the_cache_of_the_hub_is_checked_alike(copy, tmp_path, monkeypatch):
    """A snapshot as huggingface_hub lays it out, read offline."""
    from huggingface_hub import constants

    def cached(name: str, folder: Path) -> str:
        place = tmp_path / "hub" / f"models--lab--{name}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))
        return f"lab/{name}"

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    import transformers.utils.hub as hub

    load = lambda name, folder: load_model(cached(name, folder), dtype="float32", device="cpu")  # noqa: E731
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    right = fingerprint(copy("llama"))
    assert load("whole", copy("llama")).fingerprint == right
    assert load("shards", sharded(copy("llama"))).fingerprint == right
    assert load("wrapped", copy("llama", WRAPPED["DDP"])).fingerprint == right
    with pytest.raises(MicroscopeError, match="in no file"):
        load("lacking", copy("llama", LACKING["one MLP"][1]))
    pickled = copy("llama")
    (pickled / WEIGHTS).unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(MicroscopeError, match="pickles") as caught:
        load("pickled", pickled)
    assert caught.value.code == "bad_model_file"
    short = sharded(copy("llama"))
    (short / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(MicroscopeError) as caught:
        load("short", short)
    assert caught.value.code == "bad_model_file"
