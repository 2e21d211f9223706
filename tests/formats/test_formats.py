"""Formats whose files we make ourselves, after their specification; the smoke test; and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from microscope.activations import Recording
from microscope.errors import MicroscopeError
from microscope.formats import (
    Hints,
    import_sae,
    read_sae,
    smoke_test,
    smoke_test_on_model,
    smoke_test_on_recording,
    write_sae,
)
from microscope.formats.folding import rescale_rows, without_scale
from microscope.models import load_model
from microscope.params import ImportParams
from microscope.sae import SaeConfig, SparseAutoencoder, architecture, load_sae, save_sae
from tests.formats.foreign import D, K, N, gemma_tensors, rows, tensors, write

PICKLES = Hints(allow_pickle=True)


def jumprelu(x: torch.Tensor) -> torch.Tensor:
    """The definition, written out."""
    t = tensors()
    pre = x @ t["W_enc"].T + t["b_enc"]
    return (pre * (pre > t["threshold"])) @ t["W_dec"] + t["b_dec"]


def topk(x: torch.Tensor) -> torch.Tensor:
    """The definition, written out."""
    t = tensors()
    pre = x @ t["W_enc"].T + t["b_enc"]
    best = pre.topk(K, dim=1)
    f = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
    return f @ t["W_dec"] + t["b_dec"]


def assert_reads(sae: SparseAutoencoder, expected: torch.Tensor) -> None:
    torch.testing.assert_close(sae(rows()), expected, rtol=1e-5, atol=1e-5)


def test_gemma_scope_1(tmp_path):
    sae = read_sae(write("gemma_scope", tmp_path))
    assert sae.config.site == "resid_post.2"
    assert_reads(sae, jumprelu(rows()))


def test_gemma_scope_1_refuses_object_arrays(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MicroscopeError) as caught:
        read_sae(tmp_path, hints=Hints(site="resid_post.1"))
    assert caught.value.code == "bad_sae"


def test_gemma_scope_2(tmp_path):
    sae = read_sae(write("gemma_scope_2", tmp_path))
    assert (sae.config.site, sae.config.site_out) == ("resid_post.2", None)
    assert_reads(sae, jumprelu(rows()))


def test_a_transcoder_of_gemma_scope_2_with_a_skip(tmp_path):
    skip = torch.randn(D, D) * 0.1
    places = {
        "hf_hook_point_in": "model.layers.5.self_attn.o_proj.input",
        "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
    }
    found = gemma_tensors(lower=True) | {"affine_skip_connection": skip}
    sae = read_sae(write("gemma_scope_2", tmp_path, found=found, **places))
    assert (sae.config.site, sae.config.site_out) == ("attn_z.5", "mlp_out.5")
    assert_reads(sae, jumprelu(rows()) + rows() @ skip)


@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope(tmp_path, by_norm):
    """Scaled inputs, threshold in raw units: written out by the authors' definition."""
    sae = read_sae(write("llama_scope", tmp_path, sparsity_include_decoder_norm=by_norm))
    t, s = tensors(), D**0.5 / 5.0
    pre = (s * rows()) @ t["W_enc"].T + t["b_enc"]
    gate = pre * t["W_dec"].norm(dim=1) if by_norm else pre
    assert_reads(sae, ((pre * (gate > 0.2 * s)) @ t["W_dec"] + t["b_dec"]) / s)


def test_openai_topk_normalises_every_row(tmp_path):
    sae = read_sae(write("openai", tmp_path), hints=PICKLES)
    assert (sae.config.site, sae.config.k) == ("resid_post.2", K)
    x, bias = rows(), tensors()["b_dec"]
    mean = x.mean(1, keepdim=True)
    std = (x - mean).std(1, keepdim=True)
    assert_reads(sae, topk((x - mean) / (std + 1e-5) - bias) * std + mean)


def test_qwen_scope(tmp_path):
    sae = read_sae(write("qwen_scope", tmp_path), hints=PICKLES)
    assert (sae.config.site, sae.config.k) == ("resid_post.2", K)
    assert_reads(sae, topk(rows()))


class _Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_pickles_are_refused_unless_asked_and_never_run_code(tmp_path, capsys):
    path = tmp_path / "x.pt"
    torch.save({"W_enc": _Evil()}, path)
    for hints, code in ((Hints(), "pickle_refused"), (PICKLES, "bad_sae")):
        with pytest.raises(MicroscopeError) as caught:
            read_sae(path, hints=hints)
        assert caught.value.code == code
    assert "code ran" not in capsys.readouterr().out


def test_unknown_folders_and_formats(tmp_path):
    for path, code in ((tmp_path / "nowhere", "no_sae"), (tmp_path, "unknown_format")):
        with pytest.raises(MicroscopeError) as caught:
            read_sae(path)
        assert caught.value.code == code
    with pytest.raises(MicroscopeError, match="saelens"):
        read_sae(tmp_path, format="nonsense")


def test_a_site_that_nobody_knows_is_asked_for(tmp_path):
    file = (write("gemma_scope", tmp_path / "a") / "params.npz").rename(tmp_path / "params.npz")
    with pytest.raises(MicroscopeError, match="--site"):
        read_sae(file.parent)
    assert read_sae(file.parent, hints=Hints(site="resid_mid.2")).config.site == "resid_mid.2"


@pytest.mark.parametrize("name", ["topk", "batchtopk", "jumprelu", "gated", "standard"])
def test_folding_leaves_the_function_unchanged_in_float64(name):
    sae = architecture(name)(
        SaeConfig(architecture=name, d_in=D, n_latents=N, k=5, site="resid_post.1", scale=0.37)
    ).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    if name == "batchtopk":
        sae.threshold.fill_(0.3)
        sae.threshold_weight.fill_(1.0)
    x = rows()

    def out(s):
        codes = s.activate(x.double() * s.config.scale @ s.W_enc.T + s.encoder_bias())
        return s.decode(codes)

    torch.testing.assert_close(out(without_scale(sae)), out(sae), rtol=1e-10, atol=1e-12)
    if name in ("jumprelu", "gated", "standard"):
        unit = copy.deepcopy(sae)
        rescale_rows(unit, unit.W_dec.norm(dim=1))
        torch.testing.assert_close(out(unit), out(sae), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))


# --- the smoke test -------------------------------------------------------------------------------------


def test_a_good_sae_passes_and_its_damaged_copies_do_not(sae, recording, recording_folder, llama):
    good = smoke_test_on_recording(sae, recording)
    assert good.passed
    site = recording.site("resid_post.2")
    held = torch.cat([torch.from_numpy(c.values).float() for c in recording.chunks("held_out", site)])
    error = (sae(held) - held).square().sum() / (held - held.mean(0)).square().sum()
    assert good.fvu == pytest.approx(float(error), rel=0.05)
    for damage in ("latents", "orientation", "nan"):
        import copy

        bad = copy.deepcopy(sae)
        with torch.no_grad():
            if damage == "latents":
                bad.W_enc.copy_(bad.W_enc.roll(1, 0))
            elif damage == "orientation":
                bad.W_dec.copy_(bad.W_dec.flip(1))
            else:
                bad.b_dec[0] = float("nan")
        found = smoke_test_on_recording(bad, recording)
        assert not found.passed
        assert "SAE fits" not in found.message
    assert smoke_test_on_model(sae, llama).tokens > 20


def test_rows_of_another_width_are_refused(sae):
    with pytest.raises(MicroscopeError) as caught:
        smoke_test(sae, torch.randn(10, 31), torch.randn(10, 31))
    assert caught.value.code == "wrong_width"


def test_import_saves_natively_with_what_the_test_found(sae, recording_folder, model_folders, tmp_path):
    write_sae(sae, tmp_path / "theirs", format="saelens")
    params = ImportParams(
        path=str(tmp_path / "theirs"), out=str(tmp_path / "ours"), activations=str(recording_folder)
    )
    result = import_sae(params)
    assert result["smoke_test"]["passed"]
    ours = load_sae(tmp_path / "ours")
    assert ours.config.training["smoke_test"]["fvu"] == result["smoke_test"]["fvu"]
    assert ours.config.model["fingerprint"] == Recording(recording_folder).manifest.model.fingerprint
    x = torch.randn(5, 32)
    torch.testing.assert_close(ours(x), sae(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(MicroscopeError, match="already holds"):
        import_sae(params)
    by_model = ImportParams(
        path=str(tmp_path / "theirs"), out=str(tmp_path / "m"), model=str(model_folders["llama"])
    )
    assert import_sae(by_model)["smoke_test"]["tokens"] > 20
    untested = ImportParams(path=str(tmp_path / "theirs"), out=str(tmp_path / "u"))
    assert import_sae(untested)["smoke_test"] is None


def test_an_imported_sae_can_be_attached_only_to_the_model_it_was_tested_on(
    sae, recording_folder, model_folders, tmp_path
):
    from microscope.live import ResidentModel

    write_sae(sae, tmp_path / "theirs", format="saelens")
    import_sae(
        ImportParams(
            path=str(tmp_path / "theirs"), out=str(tmp_path / "o"), activations=str(recording_folder)
        )
    )
    other = ResidentModel(load_model(str(model_folders["qwen2"]), dtype="float32"))
    with pytest.raises(MicroscopeError) as caught:
        other.attach(tmp_path / "o")
    assert caught.value.code == "wrong_model"


def test_native_export_is_a_copy(sae, sae_folder, tmp_path):
    write_sae(sae, tmp_path / "copy", format="native")
    assert load_sae(tmp_path / "copy").config.fingerprint == sae.config.fingerprint
    save_sae(load_sae(sae_folder), tmp_path / "again")
    assert Path(tmp_path / "again" / "sae.json").is_file()
