"""Settings of foreign files: each is honoured or stops the import, and damage is refused in words."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from microscope.errors import MicroscopeError
from microscope.formats import Assumptions, Hints, import_sae, read_sae, write_sae
from microscope.params import ImportParams
from microscope.sae import SparseAutoencoder, load_sae, save_sae
from tests.formats.foreign import (
    DICTIONARY,
    FORMATS,
    LLAMA_SCOPE,
    NEW_SAELENS,
    OLD_SAELENS,
    D,
    K,
    N,
    gemma_tensors,
    rows,
    tensors,
    write,
)


def read(path: Path, *assume: str, **hints: Any) -> SparseAutoencoder:
    return read_sae(path, hints=Hints(allow_pickle=True, assumptions=Assumptions(assume), **hints))


def refusal(path: Path, *assume: str, **hints: Any) -> MicroscopeError:
    with pytest.raises(MicroscopeError) as caught:
        read(path, *assume, **hints)
    return caught.value


def expected(kind: str, x: torch.Tensor, *, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and output by the definition, written out."""
    t = tensors()
    pre = (x - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    f = pre.relu()
    if kind == "topk":
        f = f * torch.zeros_like(pre).scatter_(1, pre.topk(k, dim=1).indices, 1.0)
    return f, f @ t["W_dec"] + t["b_dec"]


def assert_computes(sae: SparseAutoencoder, f: torch.Tensor, out: torch.Tensor, x: torch.Tensor) -> None:
    codes = sae.encode(x)
    torch.testing.assert_close(
        torch.zeros_like(f).scatter_add_(1, codes.indices, codes.values), f, rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(sae(x), out, rtol=1e-5, atol=1e-5)


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


# --- sites that the files do not name, or name as something else ---------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("saelens", {"metadata": {"hook_name": "blocks.2.hook_mlp_in"}}, "blocks.2.hook_mlp_in"),
        ("saelens", {"metadata": {"hook_name": "blocks.2.ln2.hook_normalized"}}, "hook_normalized"),
        ("saelens", {"metadata": {}}, "does not say"),
        (
            "saelens",
            {"metadata": {"hook_name": "model.layers.2.mlp", "model_name": "google/gemma-2-2b"}},
            "model.layers.2.mlp",
        ),
        (
            "gemma_scope_2",
            {"hf_hook_point_in": "model.layers.2.pre_feedforward_layernorm.output"},
            "pre_feed",
        ),
        ("llama_scope", {"hook_point_in": "blocks.2.ln2.hook_normalized"}, "ln2.hook_normalized"),
        (
            "dictionary_learning",
            {"trainer": {**DICTIONARY["trainer"], "submodule_name": "mlp_layer_2"}},
            "mlp_layer_2",
        ),
        ("dictionary_learning", {"buffer": {"io": "in"}}, "the input of resid_post_layer_2"),
        (
            "dictionary_learning",
            {"trainer": {k: v for k, v in DICTIONARY["trainer"].items() if k != "submodule_name"}},
            "does not say",
        ),
    ],
)
def test_a_place_that_is_no_site_is_asked_for(tmp_path, name, settings, said):
    path = write(name, tmp_path, **settings)
    error = refusal(path)
    assert error.code == "site_unknown"
    assert said in error.message
    assert "--site" in error.hint
    if name != "llama_scope":  # there the output's name differs from the input's: a transcoder
        assert read(path, site="resid_mid.2").config.site == "resid_mid.2"
    assert refusal(path, site="somewhere").code == "bad_site"


@pytest.mark.parametrize("folder", ["whatever", "layers.2.input_layernorm", "encoder"])
def test_a_hookpoint_that_is_no_site_is_asked_for(tmp_path, folder):
    place = write("sparsify", tmp_path).rename(tmp_path / folder)
    assert refusal(place).code == "site_unknown"
    assert read(place, site="resid_mid.1").config.site == "resid_mid.1"


@pytest.mark.parametrize(
    ("folder", "model", "site"),
    [
        ("layers.2", "", "resid_post.2"),
        ("h.5", "", "resid_post.5"),
        ("layers.2.mlp", "", "mlp_out.2"),
        ("layers.2.attention", "EleutherAI/pythia-70m", "attn_out.2"),
        ("model.layers.2.self_attn.o_proj", "", "attn_out.2"),
        ("layers.2.post_feedforward_layernorm", "google/gemma-2-2b", "mlp_out.2"),
        ("layers.2.mlp", "google/gemma-3-1b-pt", None),  # a norm follows
        ("layers.2.post_attention_layernorm", "meta-llama/Llama-3.2-1B", None),
    ],
)
def test_hookpoints_of_sparsify(tmp_path, folder, model, site):
    place = write("sparsify", tmp_path).rename(tmp_path / folder)
    if model:
        (tmp_path / "config.json").write_text(json.dumps({"model": model}))
    if site is None:
        assert refusal(place).code == "site_unknown"
        return
    sae = read(place)
    assert (sae.config.site, sae.config.model.get("reference", "")) == (site, model)
    seed = place.rename(tmp_path / "kept")
    place.mkdir()
    assert read(seed.rename(place / "seed1")).config.site == site


def test_the_model_it_is_brought_to_settles_what_the_files_leave_open(tmp_path):
    place = write("sparsify", tmp_path / "a").rename(tmp_path / "layers.2.mlp")
    assert read(place).config.site == read(place, family="llama").config.site == "mlp_out.2"
    for brought in ({"family": "gemma"}, {"model": "google/gemma-2-2b"}):
        assert refusal(place, **brought).code == "site_unknown"
    settings = {"model_name": "mine", "model_from_pretrained_kwargs": {"center_writing_weights": True}}
    path, x = write("saelens_old", tmp_path / "b", **settings), rows() + 3.0
    assert refusal(path).code == "unsupported_setting"
    assert_computes(read(path, family="gpt2"), *expected("standard", x - x.mean(1, keepdim=True)), x)
    assert_computes(read(path, family="llama"), *expected("standard", x), x)


def test_a_transcoder_reads_its_modules_input(tmp_path):
    place = write("sparsify", tmp_path, transcode=True).rename(tmp_path / "layers.2.mlp")
    error = refusal(place)
    assert (error.code, "the input of layers.2.mlp" in error.message) == ("site_unknown", True)
    sae = read(place, site="resid_mid.2")
    assert (sae.config.site, sae.config.site_out) == ("resid_mid.2", "mlp_out.2")
    block = write("sparsify", tmp_path / "b", transcode=True)
    assert (read(block).config.site, read(block).config.site_out) == ("resid_post.1", "resid_post.2")


def test_gemma_scopes_transcoders_and_unnamed_folders_are_asked_for(tmp_path):
    path = write("gemma_scope", tmp_path)
    assert read(path).config.site == "resid_post.2"
    other = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_2" / "width_16k"
    other.parent.mkdir(parents=True)
    path.rename(other)
    assert "transcoder" in refusal(other).message
    assert "--site-out" in refusal(other, site="resid_mid.2").hint
    made = read(other, site="resid_mid.2", site_out="mlp_out.2")
    assert (made.config.site, made.config.site_out) == ("resid_mid.2", "mlp_out.2")
    (tmp_path / "layer_2").mkdir()
    assert refusal(other.rename(tmp_path / "layer_2" / "x")).code == "site_unknown"


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


# --- what a person assumes -----------------------------------------------------------------------------


def test_what_was_assumed_stays_with_the_sae(tmp_path):
    path = write("sparsify", tmp_path, multi_topk=True, warp=3)
    assert refusal(path, "multi_topk=false").code == "unknown_setting"
    sae = read(path, "multi_topk=false", "warp", "k=12")
    assert sae.config.k == 12
    told = (
        "multi_topk: true in cfg.json, read as false",
        "k: 3 in cfg.json, read as 12",
        "warp: 3 in cfg.json, taken not to change the function",
    )
    assert set(sae.config.assumed) == set(told)
    for format in ("native", "saelens", "sparsify", "dictionary_learning"):
        folder = tmp_path / format / "layers.2"
        write_sae(sae, folder, format=format)
        assert read(folder).config.assumed == sae.config.assumed


def test_assumptions_reach_the_import_and_its_report(tmp_path):
    path = write("saelens_old", tmp_path / "theirs", warp=[1, 2])
    params = ImportParams(path=str(path), out=str(tmp_path / "ours"), assume=("warp",))
    result = import_sae(params)
    assert result["assumed"] == ["warp: [1, 2] in cfg.json, taken not to change the function"]
    assert load_sae(tmp_path / "ours").config.assumed == tuple(result["assumed"])


@pytest.mark.parametrize("assume", ["nothing_of_this_name", "other=1", "=3", ""])
def test_an_assumption_about_nothing_is_refused(tmp_path, assume):
    assert refusal_code(lambda: read(write("saelens_old", tmp_path), assume)) == "bad_assumption"


def refusal_code(action: Any) -> str:
    with pytest.raises(MicroscopeError) as caught:
        action()
    return caught.value.code


def test_a_number_of_winners_that_is_missing_or_contradicts(tmp_path):
    config = {k: v for k, v in NEW_SAELENS.items() if k != "k"}
    path = write("saelens", tmp_path / "a", config=config)
    assert refusal(path).code == "k_unknown"
    assert read(path, k=K).config.k == K
    assert refusal(write("saelens", tmp_path / "b"), k=K + 1).code == "k_conflict"
    assert read(tmp_path / "b", f"k={K + 1}").config.k == K + 1
    trainer = {**DICTIONARY["trainer"], "k": K + 1}
    assert refusal(write("dictionary_learning", tmp_path / "c", trainer=trainer)).code == "bad_sae"


def test_what_a_person_says_about_an_sae_that_has_no_such_thing_is_refused(tmp_path):
    plain = write("saelens_old", tmp_path / "a")
    assert refusal(plain, k=K).code == "k_conflict"
    assert refusal(plain, site_out="mlp_out.2").code == "site_conflict"
    native = save_sae(read(plain), tmp_path / "b")
    for code, said in (("site_conflict", {"site": "resid_post.1"}), ("k_conflict", {"k": K})):
        error = refusal(native, **said)
        assert error.code == code
        assert error.hint
    assert read(native, site="blocks.3.hook_resid_pre").config.site == "resid_post.2"


@pytest.mark.parametrize("name", FORMATS)
def test_files_that_were_not_fetched_are_called_pointers(tmp_path, name):
    path = write(name, tmp_path / "a")
    for file in [path] if path.is_file() else [found for found in path.rglob("*") if found.is_file()]:
        kept = file.read_bytes()
        file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        error = refusal(path)
        assert file.name in error.message
        assert "git lfs pull" in error.hint
        file.write_bytes(kept)


# --- damage --------------------------------------------------------------------------------------------

_DEEP = json.loads("[" * 40 + "]" * 40)
_WRONG: tuple[Any, ...] = (
    *("nonsense", "", -1, 0, 10**9, 10**400, 2.5, -0.0, float("nan"), float("inf"), True, False),
    *([], {}, [1, "a"], {"a": {}}, _DEEP, "5", "\ud800"),
)


def _places(config: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in config.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += _places(value, (*path, key))
    return found


@pytest.mark.parametrize("name", [name for name, (_, config, _t) in FORMATS.items() if config])
def test_any_wrong_value_anywhere_is_read_or_refused_in_words(tmp_path, name):
    """Never a traceback; and what is read still computes finite numbers of the right shape."""
    refused, sentences = 0, set()
    for number, (place, wrong) in enumerate(itertools.product(_places(FORMATS[name][1]), _WRONG)):
        config = copy.deepcopy(FORMATS[name][1])
        inside = config
        for key in place[:-1]:
            inside = inside[key]
        inside[place[-1]] = wrong
        try:
            sae = read(write(name, tmp_path / str(number), config=config))
        except MicroscopeError as error:
            refused += 1
            sentences.add(error.message)
        else:
            assert torch.isfinite(sae(rows())).all()
            assert 1 <= max(1, sae.config.k) <= N or sae.config.architecture != "topk"
    assert refused > number / 3
    assert "" not in sentences


def _damages(tensor: torch.Tensor) -> list[torch.Tensor]:
    nan = tensor.contiguous().clone().float()
    nan.view(-1)[0] = float("nan")
    return [
        nan,
        torch.full_like(tensor, float("inf"), dtype=torch.float32),
        torch.zeros(0),
        torch.zeros(3, 5, 7),
        tensor.reshape(-1)[:-1].clone(),
        tensor.to(torch.int64),
        tensor.to(torch.complex64),
        torch.full(tensor.shape, 1e300, dtype=torch.float64),
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_tensors_are_refused(tmp_path, name):
    usual, number = FORMATS[name][2], itertools.count()
    for key in usual:
        if key == "stats_last_nonzero" or (key == "threshold" and name == "dictionary_learning"):
            continue  # statistics that nothing depends on
        without = {k: v for k, v in usual.items() if k != key}
        damaged = [without] if key != "k" else []
        damaged += [{**usual, key: bad} for bad in _damages(usual[key]) if key != "k" or bad.is_complex()]
        for found in damaged:
            path = tmp_path / str(next(number))
            if name == "gemma_scope" and any(t.dtype == torch.complex64 for t in found.values()):
                continue  # numpy and torch agree on these; the next case covers them
            error = refusal(write(name, path, found=found))
            assert error.code in ("bad_sae", "unsupported_sae"), (key, error)
    extra = {**usual, "unexpected": torch.zeros(2)}
    error = refusal(write(name, tmp_path / "extra", found=extra))
    assert (error.code, "unexpected" in error.message) == ("unknown_setting", True)
    assert (
        "unexpected: a tensor"
        in read(write(name, tmp_path / "again", found=extra), "unexpected").config.assumed[0]
    )


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a": 1} 2', "\ud800"])
def test_configurations_that_are_none(tmp_path, text):
    path = write("saelens", tmp_path)
    (path / "cfg.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert refusal(path).code == "bad_sae"


def test_weights_that_are_none(tmp_path):
    path = write("saelens", tmp_path / "a")
    whole = (path / "sae_weights.safetensors").read_bytes()
    for content in (b"", b"version https://git-lfs.github.com/spec/v1\n", whole[:-7], whole[:20]):
        (path / "sae_weights.safetensors").write_bytes(content)
        assert refusal(path).code == "bad_sae"
    gemma = write("gemma_scope", tmp_path / "b", found=gemma_tensors(lower=False))
    for content in (b"", b"PK\x03\x04", (gemma / "params.npz").read_bytes()[:-200]):
        (gemma / "params.npz").write_bytes(content)
        assert refusal(gemma).code == "bad_sae"


def test_matrices_that_belong_to_another_configuration(tmp_path):
    for number, (key, value) in enumerate({"d_in": D + 1, "d_sae": N - 1}.items()):
        error = refusal(write("saelens", tmp_path / str(number), **{key: value}))
        assert (error.code, key in error.message) == ("bad_sae", True)
    turned = {**FORMATS["saelens"][2], "W_enc": tensors()["W_enc"]}
    config = {k: v for k, v in NEW_SAELENS.items() if not k.startswith("d_")}
    assert refusal(write("saelens", tmp_path / "t", config=config, found=turned)).code == "bad_sae"
