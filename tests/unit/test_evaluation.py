"""Metrics against independent computations."""

from __future__ import annotations

import json

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from microscope.errors import MicroscopeError
from microscope.evaluation import evaluate, summarise, write_reports
from microscope.evaluation.reconstruction import Accumulator, ratio_interval
from microscope.evaluation.splice import ResidualSplicer, recovered_from
from microscope.params import EvaluateParams
from microscope.sae import SparseAutoencoder, load_sae, save_sae


@pytest.fixture(scope="module")
def params(sae_folder, recording_folder) -> EvaluateParams:
    return EvaluateParams(
        sae_path=str(sae_folder),
        activations=str(recording_folder),
        loss_contexts=6,
        bootstrap=200,
        device="cpu",
    )


@pytest.fixture(scope="module")
def evaluation(params):
    return evaluate(params)


def held_out(recording):
    site = recording.site("resid_post.2")
    chunks = list(recording.chunks("held_out", site))
    x = np.concatenate([c.values for c in chunks]).astype(np.float64)
    keep = np.concatenate([recording.keep_mask(site, c.flags, c.norm) for c in chunks])
    return x, keep


@pytest.mark.parametrize("which", ["ordinary", "every"])
def test_reconstruction_metrics_by_hand(evaluation, recording, sae, which):
    x, keep = held_out(recording)
    x = x[keep] if which == "ordinary" else x
    y = sae(torch.from_numpy(x).float()).double().numpy()
    got = getattr(evaluation, which)
    mean = x.mean(0)
    error, spread = ((x - y) ** 2).sum(1), ((x - mean) ** 2).sum(1)
    norm, y_norm = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    expected = {
        "n": len(x),
        "fvu": error.sum() / spread.sum(),
        "nmse0": error.sum() / (x**2).sum(),
        "per_token_fvu": (error / spread).mean(),
        "mse": ((x - y) ** 2).mean(),
        "cosine": ((x * y).sum(1) / norm / y_norm).mean(),
        "norm_ratio": (y_norm / norm).mean(),
        "relative_bias": (y_norm**2).sum() / (x * y).sum(),
    }
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-5), name
    assert got.fvu_interval[0] < got.fvu < got.fvu_interval[1]


def test_use_of_latents_by_hand(evaluation, recording, sae):
    x, keep = held_out(recording)
    codes = sae.encode(torch.from_numpy(x[keep]).float())
    fired = torch.bincount(codes.indices[codes.values > 0], minlength=96)
    assert evaluation.usage.l0 == pytest.approx(float((codes.values > 0).sum(1).double().mean()))
    assert evaluation.usage.dead_share == pytest.approx(float((fired == 0).double().mean()))
    assert sum(evaluation.usage.density_counts) == int((fired > 0).sum())


def test_loss_recovered_equals_splicing_through_hugging_face(evaluation, recording, sae, llama):
    """The same splice by a hook on the untouched Hugging Face model."""
    site = recording.site("resid_post.2")
    windows = [w for c in recording.chunks("held_out", site) for w in c.windows()]
    picks = np.unique(np.linspace(0, len(windows) - 1, 6).round().astype(int))
    totals = dict.fromkeys(("model", "sae", "zero"), 0.0)
    predictions = 0
    for i in picks:
        ids = torch.from_numpy(windows[i].token.astype(np.int64))[None]
        special = torch.from_numpy(windows[i].flags != 0)

        def change(kind, special=special):
            def hook(_module, _inputs, output):
                x = output[0]
                keep = ~special & (x.norm(dim=1) <= sae.config.token_filter.max_norm)
                x = x.clone()
                x[keep] = sae(x[keep]) if kind == "sae" else 0
                return x[None]

            return hook

        for kind in totals:
            handle = None
            if kind != "model":
                handle = llama.model.model.layers[2].register_forward_hook(change(kind))
            with torch.no_grad():
                logits = llama.model(ids).logits[0]
            if handle:
                handle.remove()
            totals[kind] += float(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
        predictions += ids.shape[1] - 1
    loss = evaluation.loss
    assert loss.predictions == predictions
    assert loss.ce_model == pytest.approx(totals["model"] / predictions, rel=1e-5)
    assert loss.ce_sae == pytest.approx(totals["sae"] / predictions, rel=1e-5)
    assert loss.ce_zero == pytest.approx(totals["zero"] / predictions, rel=1e-5)
    harm = totals["zero"] - totals["model"]
    recovered = (totals["zero"] - totals["sae"]) / harm if harm > 0 else None
    assert loss.ce_recovered == (None if recovered is None else pytest.approx(recovered, rel=1e-4))
    assert 0 < loss.kl_recovered <= 1


def test_a_share_of_loss_is_recovered_only_where_zeroing_does_harm():
    # a context of 10 predictions: loss of the model 20 nats, spliced 22, zeroed 40 or 15; its divergences 1 and 5
    for zeroed, recovered in ((40.0, 18 / 20), (15.0, None), (20.0, None)):
        found = recovered_from(
            np.array([[10.0, 20.0, 22.0, zeroed, 1.0, 5.0]] * 3), [0, 1, 2], bootstrap=20, seed=0
        )
        assert found.ce_recovered == (None if recovered is None else pytest.approx(recovered))
        assert (found.ce_recovered_interval is None) == (recovered is None)
        assert found.kl_recovered == pytest.approx(1 - 1 / 5)


def test_a_perfect_reconstruction_has_fvu_zero_and_the_mean_has_one():
    x = torch.randn(500, 6, dtype=torch.float64)
    doc = np.arange(500) // 50
    for guess, expected in ((x, 0.0), (x.mean(0).expand_as(x), 1.0)):
        accumulator = Accumulator(x.mean(0))
        accumulator.add(x, guess, doc)
        assert accumulator.result(bootstrap=0, seed=0).fvu == pytest.approx(expected, abs=1e-12)


def test_sinks_hide_a_bad_reconstruction_and_the_filter_shows_it():
    """One sink row makes the unfiltered FVU look excellent: why both are printed."""
    x = torch.randn(1000, 8, dtype=torch.float64)
    x[0] = 10_000
    guess = torch.zeros_like(x)
    guess[0] = x[0]
    everything, ordinary = Accumulator(x.mean(0)), Accumulator(x[1:].mean(0))
    everything.add(x, guess, np.zeros(1000))
    ordinary.add(x[1:], guess[1:], np.zeros(999))
    assert everything.result(bootstrap=0, seed=0).fvu < 1e-3
    assert ordinary.result(bootstrap=0, seed=0).fvu > 0.9


def test_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        bottom = rng.uniform(1, 2, 40)
        top = bottom * rng.normal(0.3, 0.1, 40)
        low, high = ratio_interval(top, bottom, 300, trial)
        hits += low <= 0.3 <= high
    assert 0.85 <= hits / 200 <= 0.99
    assert ratio_interval(np.ones(2), np.ones(2), 100, 0) is None


def test_reports_name_formula_filters_and_verdict(evaluation, tmp_path):
    write_reports(evaluation, tmp_path)
    markdown, html = ((tmp_path / f"report.{e}").read_text() for e in ("md", "html"))
    for text in (markdown, html):
        assert "Σ‖x−x̂‖² / Σ‖x−μ‖²" in text
        assert "Ordinary tokens" in text
        assert "All tokens" in text
        assert "8× the median" in text
        assert f"{evaluation.ordinary.fvu:.4f}" in text
    assert "<script" not in html
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["ordinary"]["fvu"] == evaluation.ordinary.fvu
    goals = {g["name"]: g for g in summarise(evaluation)["goals"]}
    assert goals["FVU"]["passed"] == (evaluation.ordinary.fvu <= 0.15)


def test_without_loss_contexts_no_model_is_needed(params, monkeypatch):
    import msgspec

    monkeypatch.setattr("microscope.evaluation.run.load_recorded_model", lambda *_: 1 / 0)
    result = evaluate(msgspec.structs.replace(params, loss_contexts=0, probe_tokens=0))
    assert result.loss is None
    assert {g.name: g.passed for g in result.goals}["CE recovered"] is None


def test_the_wrong_model_site_or_width_is_refused(params, model_folders, tmp_path, sae_folder):
    import msgspec

    with pytest.raises(MicroscopeError) as caught:
        evaluate(msgspec.structs.replace(params, model=str(model_folders["qwen2"])))
    assert caught.value.code == "wrong_model"
    with pytest.raises(MicroscopeError) as caught:
        evaluate(msgspec.structs.replace(params, layer=1))
    assert caught.value.code == "wrong_site"
    sae = load_sae(sae_folder)
    sae.config.site = "resid_post.3"
    save_sae(sae, tmp_path)
    with pytest.raises(MicroscopeError) as caught:
        evaluate(msgspec.structs.replace(params, sae_path=str(tmp_path)))
    assert caught.value.code == "site_not_recorded"


def test_rows_that_do_not_fit_together_are_encoded_in_parts(params, evaluation, monkeypatch):
    """Little memory changes nothing but the time; when not even one row fits, it says what to do."""
    room = 40
    encode = SparseAutoencoder.encode

    def little_memory(self, x):
        if len(x) > room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory")
        return encode(self, x)

    monkeypatch.setattr(SparseAutoencoder, "encode", little_memory)
    without_loss = msgspec.structs.replace(params, loss_contexts=0, probe_tokens=0)
    got = evaluate(without_loss)
    assert got.ordinary.fvu == pytest.approx(evaluation.ordinary.fvu, rel=1e-9)
    assert got.usage.l0 == evaluation.usage.l0
    room = 0
    with pytest.raises(MicroscopeError) as caught:
        evaluate(without_loss)
    assert caught.value.code == "out_of_memory"
    assert "--device cpu" in caught.value.hint


def test_a_context_that_does_not_fit_is_an_error_with_a_remedy(params, monkeypatch):
    def no_memory(splicer, tokens, special):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ResidualSplicer, "start", no_memory)
    with pytest.raises(MicroscopeError) as caught:
        evaluate(params)
    assert caught.value.code == "out_of_memory"
    assert "--loss-contexts 0" in caught.value.hint
