"""What a configuration is a model of: built if it is a causal language model, and otherwise refused as what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForMaskedLM, AutoModelForSeq2SeqLM, BartForCausalLM

from microscope.errors import MicroscopeError
from microscope.models import inspect_model, load_model
from microscope.models.configuration import UNBOUNDED, check_sizes
from tests.families.tiny import make_any, randomise, tiny_config
from tests.tiny_models import make_tokenizer


def written(folder: Path, **settings: Any) -> str:
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def refused(reference: str, *words: str, code: str = "unsupported_family") -> None:
    for look in (inspect_model, load_model):
        with pytest.raises(MicroscopeError) as caught:
            look(reference)
        assert caught.value.code == code, caught.value
        for word in words:
            assert word in caught.value.message, caught.value
        assert caught.value.hint


KINDS = {
    "t5": "encoder–decoder",
    "bart": "encoder–decoder",
    "pegasus": "encoder–decoder",
    "marian": "encoder–decoder",
    "whisper": "encoder–decoder",
    "m2m_100": "encoder–decoder",
    "seamless_m4t": "encoder–decoder",
    "distilbert": "encoder",
    "modernbert": "encoder",
    "electra": "encoder",
    "xlm-roberta": "encoder",
    "vit": "images",
    "dinov2": "images",
    "wav2vec2": "sound",
    "hubert": "sound",
    "clip": "images",
    "blip": "multimodal",
    "jev": "several parts",
}


@pytest.mark.parametrize("model_type", KINDS)
def test_other_models_are_refused_as_what_they_are(model_type, tmp_path):
    refused(written(tmp_path, model_type=model_type), f"({model_type})", KINDS[model_type])


def test_types_without_code_are_refused_with_the_version(tmp_path):
    version = transformers.__version__
    refused(written(tmp_path, model_type="no-such-type"), "no-such-type", version)
    own = {"AutoModelForCausalLM": "own.Model"}
    refused(written(tmp_path, model_type="no-such-type", auto_map=own), "code of its own", "never run")


def test_code_beside_a_known_type_is_not_run(tmp_path):
    folder = make_any("phi3", tmp_path)
    (folder / "own.py").write_text("raise SystemExit('this code must not run')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "own.Phi3ForCausalLM", "AutoConfig": "own.Phi3Config"}
    written(folder, **config)
    assert type(load_model(str(folder), device="cpu").model) is transformers.Phi3ForCausalLM


def test_a_decoder_saved_by_itself_is_one_and_a_whole_translator_is_not(tmp_path):
    """Both are of type 'bart': the first has no encoder."""
    torch.manual_seed(0)
    for build, name in ((BartForCausalLM, "decoder"), (AutoModelForSeq2SeqLM, "whole")):
        config = tiny_config("bart")
        model = build(config) if name == "decoder" else build.from_config(config)
        randomise(model)
        model.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    loaded = load_model(str(tmp_path / "decoder"), dtype="float32", device="cpu")
    assert type(loaded.model) is BartForCausalLM
    refused(str(tmp_path / "whole"), "encoder–decoder")
    # Weights of a translator do not become a decoder by what its configuration says.
    settings = json.loads((tmp_path / "whole" / "config.json").read_text())
    settings |= {"is_encoder_decoder": False, "is_decoder": True}
    written(tmp_path / "whole", **settings)
    refused(str(tmp_path / "whole"), "encoder–decoder")
    written(tmp_path / "whole", **settings | {"architectures": ["BartForCausalLM"]})
    with pytest.raises(MicroscopeError) as caught:
        load_model(str(tmp_path / "whole"), dtype="float32", device="cpu")
    assert caught.value.code == "bad_model_file"
    assert "encoder.embed_positions" in caught.value.message


def test_an_encoder_is_no_decoder_by_its_files(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(tiny_config("electra"))
    model.save_pretrained(tmp_path)
    refused(str(tmp_path), "text encoder")


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("gemma2", {"use_bidirectional_attention": True}),
        ("gemma3", {"text_config": {"model_type": "gemma3_text", "use_bidirectional_attention": True}}),
        ("gemma4_text", {"use_bidirectional_attention": "all"}),
        ("mixtral", {"is_causal": False}),
        ("xlm", {}),
        ("xlnet", {}),
    ],
)
def test_tokens_that_see_those_that_follow_them(model_type, settings, tmp_path):
    refused(
        written(tmp_path, model_type=model_type, **settings),
        "that follow them",
        code="unsupported_configuration",
    )


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("opt", {"ffn_dim": 10**12}),
        ("bloom", {"n_layer": 10**6}),
        ("gptj", {"rotary_dim": 10**12}),
        ("mixtral", {"num_local_experts": 10**9}),
        ("deepseek_v3", {"n_routed_experts": 10**9}),
        ("mamba", {"state_size": 10**12}),
        ("mpt", {"n_layers": 10**6}),
        ("jamba", {"mamba_d_state": 10**12}),
        ("gemma3", {"text_config": {"model_type": "gemma3_text", "num_hidden_layers": 10**6}}),
        ("llava", {"vision_config": {"model_type": "clip_vision_model", "hidden_size": 10**9}}),
        ("gemma3n_text", {"intermediate_size": [10**12] * 4}),
        ("granite", {"num_attention_heads": 0}),
    ],
)
@pytest.mark.timeout(60)
def test_sizes_that_no_model_has_under_the_names_of_any_type(model_type, settings, tmp_path):
    refused(written(tmp_path, model_type=model_type, **settings), "whole number", code="bad_model_file")


def test_epsilons_of_any_name_are_positive(tmp_path):
    for model_type, name in (
        ("bloom", "layer_norm_epsilon"),
        ("starcoder2", "norm_epsilon"),
        ("phi3", "rms_norm_eps"),
    ):
        refused(
            written(tmp_path, **{"model_type": model_type, name: -1e-5}),
            name,
            code="unsupported_configuration",
        )


LENGTHS: dict[str, tuple[dict[str, Any], int]] = {
    "opt": ({"max_position_embeddings": 100}, 100),
    "gptj": ({"n_positions": 100}, 100),
    "mpt": ({"max_seq_len": 100}, 100),
    "rwkv": ({"context_length": 100}, 100),
    "mamba": ({}, UNBOUNDED),
    "bloom": ({}, UNBOUNDED),
    "recurrent_gemma": ({}, UNBOUNDED),
    "xlm-roberta": ({"is_decoder": True, "max_position_embeddings": 100, "pad_token_id": 1}, 98),
}


@pytest.mark.parametrize("model_type", LENGTHS)
def test_the_longest_text_of_any_type(model_type, tmp_path):
    settings, longest = LENGTHS[model_type]
    sizes = {name: value for name, value in tiny_config(model_type).to_dict().items() if "type" not in name}
    reference = written(tmp_path, **sizes | {"model_type": model_type} | settings)
    assert inspect_model(reference)["max_context"] == longest


def test_rotations_that_depend_on_the_length_of_any_type(tmp_path):
    """Phi-3 states the length of its short rotations beside them, in the way of older files."""
    config = tiny_config("phi3").to_dict()
    pairs = (config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]) // 2
    config.pop("rope_parameters", None)
    config |= {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs},
    }
    assert inspect_model(written(tmp_path, **config))["max_context"] == 32


@pytest.mark.parametrize("model_type", ["dory", "longcat_flash", "xlstm", "dots3_note", "opt"])
def test_sizes_are_those_of_the_modules_where_settings_say_otherwise(model_type, tmp_path):
    folder = make_any(model_type, tmp_path)
    facts = inspect_model(str(folder))
    assert facts["n_layers"] == (3 if model_type == "dory" else 4)
    assert facts["d_model"] > 0
    assert facts["vocab_size"] == 256
    assert all(needed > 0 for needed in facts["bytes_needed"].values())


def test_the_width_of_a_head_may_be_stated_in_parts():
    """Of attention with latent keys, ``head_dim`` is the rotated part, which may be none."""
    sizes = {"hidden_size": 32, "qk_rope_head_dim": 0, "qk_nope_head_dim": 16, "head_dim": 0}
    check_sizes(sizes, "a model")
    del sizes["qk_rope_head_dim"]
    with pytest.raises(MicroscopeError, match="head_dim 0"):
        check_sizes(sizes, "a model")
