"""Settings of foreign files: each is honoured or stops the import."""

from __future__ import annotations

import json

import pytest
import torch

from microscope.formats import write_sae
from tests.formats.foreign import (
    FORMATS,
    LLAMA_SCOPE,
    OLD_SAELENS,
    D,
    K,
    N,
    rows,
    tensors,
    write,
)
from tests.formats.reading import assert_computes, expected, read, refusal

# --- SAELens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["standard", "topk", None])
@pytest.mark.parametrize("key", ["activation_fn_str", "activation_fn"])
def test_an_old_topk_has_k_winners(tmp_path, architecture, key):
    config = {k: v for k, v in OLD_SAELENS.items() if k != "activation_fn_str"}
    config |= {
        key: "topk",
        "activation_fn_kwargs": {"k": K, "postact_fn": "relu"},
        "architecture": architecture,
    }
    sae = read(write("saelens_old", tmp_path, config=config))
    assert (sae.config.architecture, sae.config.k, sae.config.site) == ("topk", K, "resid_post.2")
    assert_computes(sae, *expected("topk", rows()), rows())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation_fn_str"),
        ({"activation_fn_str": "gelu"}, "activation_fn_str"),
        ({"architecture": "topk"}, "activation_fn_str"),  # topk with relu: two different functions
        ({"architecture": "jumprelu", "activation_fn_str": "topk"}, "activation_fn_str"),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "postact_fn": "identity"}},
            "activation_fn_kwargs.postact_fn",
        ),
        (
            {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K, "signed": True}},
            "activation_fn_kwargs.signed",
        ),
        ({"activation_fn_kwargs": {"alpha": 0.1}}, "activation_fn_kwargs.alpha"),
        ({"normalize_activations": "batch_norm"}, "normalize_activations"),
        ({"reshape_activations": "hook_z"}, "reshape_activations"),
        ({"reshape_activations": "patches"}, "reshape_activations"),
        ({"hook_head_index": 0}, "hook_head_index"),
        ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm"),
        ({"some_future_setting": 0}, "some_future_setting"),
        ({"some_future_setting": False}, "some_future_setting"),
        ({"k": 5}, "k"),
        (
            {"model_name": "new-model", "model_from_pretrained_kwargs": {"center_writing_weights": True}},
            "model_from_pretrained_kwargs.center_writing_weights",
        ),
        (
            {"model_from_pretrained_kwargs": {"process_the_weights": True}},
            "model_from_pretrained_kwargs.process_the_weights",
        ),
        (
            {
                "hook_name": "blocks.2.attn.hook_z",
                "model_from_pretrained_kwargs": {"fold_value_biases": True},
            },
            "model_from_pretrained_kwargs.fold_value_biases",
        ),
    ],
)
def test_a_setting_that_is_not_honoured_is_named(tmp_path, settings, key):
    error = refusal(write("saelens_old", tmp_path, **settings))
    assert error.code in ("unsupported_setting", "unknown_setting")
    assert f" {key} " in error.message
    assert f"--assume {key}" in error.hint


@pytest.mark.parametrize(
    "settings",
    [
        {"normalize_activations": None},
        {"normalize_activations": False},
        {"hook_head_index": None, "some_future_setting": None, "activation_fn_kwargs": None},
        {"l1_coefficient": 5.0, "lr": 1e-3, "n_batches_in_buffer": 64, "seqpos_slice": [None]},
        {"hook_name": None, "hook_point": "blocks.2.hook_resid_post", "hook_point_layer": 2},
        {"hook_name": "blocks.3.hook_resid_pre"},
        {"hook_name": "transformer.h.2", "model_class_name": "AutoModelForCausalLM"},
        {"model_from_pretrained_kwargs": {"center_writing_weights": False, "device": "cpu"}},
        {"model_name": "llama", "model_from_pretrained_kwargs": {"center_writing_weights": True}},
        {"model_from_pretrained_kwargs": {"fold_value_biases": True, "fold_ln": True}},
    ],
)
def test_settings_that_leave_the_function_alone(tmp_path, settings):
    sae = read(write("saelens_old", tmp_path, **settings))
    assert sae.config.site == "resid_post.2"
    assert_computes(sae, *expected("standard", rows()), rows())


def test_centred_rows_are_folded_into_the_encoder(tmp_path):
    """What TransformerLens takes out of the residual stream of a model with LayerNorm."""
    kwargs = {"center_writing_weights": True}
    path = write("saelens_old", tmp_path / "a", model_from_pretrained_kwargs=kwargs)
    x = rows() + 3.0
    assert_computes(read(path), *expected("standard", x - x.mean(1, keepdim=True)), x)
    plain = write(
        "saelens_old", tmp_path / "b", hook_name="blocks.2.mlp.hook_post", model_from_pretrained_kwargs=kwargs
    )
    assert_computes(read(plain), *expected("standard", x), x)
    name = "model_from_pretrained_kwargs.center_writing_weights"
    as_if_not = read(path, f"{name}=false")
    assert_computes(as_if_not, *expected("standard", x), x)
    assert as_if_not.config.assumed == (f"{name}: true in cfg.json, read as false",)


@pytest.mark.parametrize(("tensor", "said"), [("scaling_factor", True), ("finetuning_scaling_factor", True)])
def test_factors_of_a_finetuning_scale_what_is_decoded(tmp_path, tensor, said):
    factor = torch.linspace(0.5, 2.0, N)
    found = {**FORMATS["saelens_old"][2], tensor: factor}
    path = write("saelens_old", tmp_path, found=found, finetuning_scaling_factor=said)
    f, _ = expected("standard", rows())
    out = (f * factor) @ tensors()["W_dec"] + tensors()["b_dec"]
    assert_computes(read(path), f, out, rows())


def test_factors_that_nothing_explains_are_refused_unless_they_are_one(tmp_path):
    found = {**FORMATS["saelens_old"][2], "scaling_factor": torch.full((N,), 1.5)}
    error = refusal(write("saelens_old", tmp_path / "a", found=found))
    assert (error.code, "finetuning_scaling_factor=true" in error.hint) == ("unsupported_setting", True)
    assert_computes(
        read(tmp_path / "a", "finetuning_scaling_factor=true"),
        expected("standard", rows())[0],
        1.5 * (expected("standard", rows())[1] - tensors()["b_dec"]) + tensors()["b_dec"],
        rows(),
    )
    found["scaling_factor"] = torch.ones(N)
    assert_computes(
        read(write("saelens_old", tmp_path / "b", found=found)), *expected("standard", rows()), rows()
    )


def test_the_embedding_is_no_site(tmp_path):
    for number, name in enumerate(("blocks.0.hook_resid_pre", "hook_embed")):
        error = refusal(write("saelens_old", tmp_path / str(number), hook_name=name))
        assert error.code == "bad_site"
        assert "embedding" in error.message
    assert read(tmp_path / "1", site="resid_post.0").config.site == "resid_post.0"


def test_heads_side_by_side_both_ways(tmp_path):
    path = write(
        "saelens_old", tmp_path / "a", hook_name="blocks.2.attn.hook_z", reshape_activations="hook_z"
    )
    sae = read(path)
    assert sae.config.site == "attn_z.2"
    write_sae(sae, tmp_path / "b", format="saelens")
    written = json.loads((tmp_path / "b" / "cfg.json").read_text())
    assert (written["reshape_activations"], written["metadata"]["hook_name"]) == (
        "hook_z",
        "blocks.2.attn.hook_z",
    )
    assert_computes(read(tmp_path / "b"), *expected("standard", rows()), rows())


# --- other formats' settings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [
        ("sparsify", {"multi_topk": True}, "multi_topk"),
        ("sparsify", {"signed": True}, "signed"),
        ("sparsify", {"activation": "relu"}, "activation"),
        ("gemma_scope_2", {"architecture": "topk"}, "architecture"),
        ("llama_scope", {"use_glu_encoder": True}, "use_glu_encoder"),
        ("llama_scope", {"norm_activation": "token-wise"}, "norm_activation"),
        ("llama_scope", {"act_fn": "topk"}, "act_fn"),
        ("dictionary_learning", {"buffer": {"io": "in_and_out"}}, "buffer.io"),
        ("openai", {"activation": "Identity"}, "activation"),
        ("openai", {"activation_state_dict": {"k": K, "postact_fn": "Identity"}}, "state.postact_fn"),
    ],
)
def test_unsupported_settings_of_other_formats(tmp_path, name, settings, key):
    error = refusal(write(name, tmp_path, **settings))
    assert (error.code, f" {key} " in error.message) == ("unsupported_setting", True)
    assert "--assume" in error.hint


def test_llama_scope_subtracts_the_decoders_bias_where_it_says_so(tmp_path):
    sae = read(write("llama_scope", tmp_path, apply_decoder_bias_to_pre_encoder=True))
    t, x, s = tensors(), rows(), D**0.5 / 5.0
    pre = (s * x - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    f = pre * (pre * t["W_dec"].norm(dim=1) > 0.2 * s)
    assert_computes(sae, f, (f @ t["W_dec"] + t["b_dec"]) / s, x)
    config = {k: v for k, v in LLAMA_SCOPE.items() if k != "sparsity_include_decoder_norm"}
    found = {k: v for k, v in FORMATS["llama_scope"][2].items() if k != "decoder.bias"}
    plain = read(write("llama_scope", tmp_path / "b", config=config, found=found, use_decoder_bias=False))
    pre = s * x @ t["W_enc"].T + t["b_enc"]
    f = pre * (pre > 0.2 * s)
    assert_computes(plain, f, f @ t["W_dec"] / s, x)


def test_groups_of_sparsify(tmp_path):
    sae = read(write("sparsify", tmp_path / "a", activation="groupmax", k=4))
    assert sae.config.architecture == "groupmax"
    assert refusal(write("sparsify", tmp_path / "b", activation="groupmax", k=5)).code == "bad_sae"
