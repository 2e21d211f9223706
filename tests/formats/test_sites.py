"""Sites that foreign files do not name, or name as something else."""

from __future__ import annotations

import json

import pytest

from tests.formats.foreign import (
    DICTIONARY,
    rows,
    write,
)
from tests.formats.reading import assert_computes, expected, read, refusal


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
