"""Transcoders, sites inside a block, probing and comparisons against independent computations."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from microscope.activations import Recording, record
from microscope.errors import MicroscopeError
from microscope.evaluation import compare, difference_table, evaluate, write_reports
from microscope.evaluation.compare import paired_difference
from microscope.evaluation.probing import auroc, probe, text_properties
from microscope.evaluation.splice import HookSplicer, ResidualSplicer, Window, loss_recovered
from microscope.params import CompareParams, EvaluateParams, Site, TraceParams
from microscope.progress import SILENT
from microscope.sae import SaeConfig, SparseAutoencoder, TokenFilter, architecture, save_sae


def random_sae(site: str, site_out: str | None = None, **config: object) -> SparseAutoencoder:
    """Random directions of a useful size; a transcoder with ``site_out``."""
    sae = architecture("topk")(
        SaeConfig(architecture="topk", d_in=32, n_latents=64, k=6, site=site, site_out=site_out, **config)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return sae.requires_grad_(False)


@pytest.fixture(scope="module")
def params(sae_folder, recording_folder) -> EvaluateParams:
    return EvaluateParams(
        sae_path=str(sae_folder),
        activations=str(recording_folder),
        loss_contexts=5,
        bootstrap=200,
        device="cpu",
    )


def windows_of(recording: Recording, site: str, count: int) -> list[Window]:
    chunks = recording.chunks("held_out", recording.site(site))
    windows = [
        Window(tokens=w.token, special=w.flags != 0, doc=int(w.doc[0])) for c in chunks for w in c.windows()
    ]
    return windows[:count]


@pytest.mark.parametrize("kind", ["resid_post", "resid_mid", "attn_out", "mlp_out", "attn_z", "mlp_act"])
def test_any_site_can_be_spliced(tiny, recording, kind):
    """A reconstruction that is the activation itself changes nothing; zero does, and zero is zero."""
    if tiny.family.name == "gpt_neox" and kind == "resid_mid":
        # parallel blocks have no middle
        with pytest.raises(MicroscopeError) as refused:
            HookSplicer(tiny, random_sae("resid_mid.1"), Site(kind, 1), Site(kind, 1)).start(
                torch.arange(3, 20), torch.zeros(17, dtype=torch.bool)
            )
        assert refused.value.code == "no_such_site"
        return
    sae = random_sae(f"{kind}.1", token_filter=TokenFilter(exclude_special=False))
    splicer = HookSplicer(tiny, sae, Site(kind, 1), Site(kind, 1))
    tokens = torch.arange(3, 20)
    special = torch.zeros(17, dtype=torch.bool)
    with torch.inference_mode():
        reference = splicer.start(tokens, special)
        torch.testing.assert_close(reference, tiny.model(tokens[None]).logits[0].float().log_softmax(-1))
        sae.forward = lambda x: x.float()  # type: ignore[method-assign]
        torch.testing.assert_close(splicer.replaced("sae", filtered=True), reference, rtol=1e-4, atol=1e-4)
        assert float((splicer.replaced("zero", filtered=True) - reference).abs().max()) > 1e-3


def test_hooks_and_the_runner_agree(llama, sae, recording):
    windows = windows_of(recording, "resid_post.2", 4)
    found = [
        loss_recovered(splicer, windows, progress=SILENT, bootstrap=50, seed=0)
        for splicer in (
            ResidualSplicer(llama, sae, 2),
            HookSplicer(llama, sae, Site("resid_post", 2), Site("resid_post", 2)),
        )
    ]
    for one, two in zip(*found, strict=True):
        for name in ("ce_model", "ce_sae", "ce_zero", "kl_sae", "kl_zero"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-4)


def test_without_the_filter_every_token_is_replaced(llama, recording):
    """Half of the rows are above the norm allowed: the filter keeps them, without it they go."""
    windows = windows_of(recording, "resid_post.2", 3)
    norms = [c.norm for c in recording.chunks("held_out", recording.site("resid_post.2"))]
    sae = random_sae(
        "resid_post.2", token_filter=TokenFilter(max_norm=float(np.median(np.concatenate(norms))))
    )
    filtered, every = loss_recovered(
        ResidualSplicer(llama, sae, 2), windows, progress=SILENT, bootstrap=0, seed=0
    )
    assert filtered.ce_model == every.ce_model
    assert filtered.kl_zero < every.kl_zero
    total = 0.0
    for window in windows:
        ids = torch.from_numpy(window.tokens.astype(np.int64))[None]
        handle = llama.model.model.layers[2].register_forward_hook(lambda _m, _i, o: sae(o[0])[None])
        with torch.no_grad():
            logits = llama.model(ids).logits[0]
        handle.remove()
        total += float(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
    assert every.ce_sae == pytest.approx(total / every.predictions, rel=1e-5)


def test_a_transcoder_is_held_against_its_own_target(tmp_path, llama, recording, params):
    sae = random_sae("resid_post.1", "resid_post.2", apply_b_dec=False)
    save_sae(sae, tmp_path / "transcoder")
    found = evaluate(msgspec.structs.replace(params, sae_path=str(tmp_path / "transcoder")))
    assert (found.site, found.site_out) == ("resid_post.1", "resid_post.2")
    x, y = (
        torch.from_numpy(np.concatenate([c.values for c in recording.chunks("held_out", recording.site(s))]))
        for s in ("resid_post.1", "resid_post.2")
    )
    out = sae(x.float()).double()
    y = y.double()
    assert found.every.fvu == pytest.approx(
        float((y - out).square().sum() / (y - y.mean(0)).square().sum()), rel=1e-5
    )
    total = predictions = 0
    windows = windows_of(recording, "resid_post.1", 10**6)
    picks = np.unique(np.linspace(0, len(windows) - 1, 5).round().astype(int))
    for i in picks:
        ids = torch.from_numpy(windows[i].tokens.astype(np.int64))[None]
        keep = ~torch.from_numpy(windows[i].special)
        caught: dict[str, torch.Tensor] = {}

        def write(_module, _inputs, output, keep=keep, caught=caught):
            changed = output.clone()
            changed[0, keep] = sae(caught["x"][0, keep])
            return changed

        layers = llama.model.model.layers
        handles = [
            layers[1].register_forward_hook(lambda _m, _i, o, caught=caught: caught.update(x=o)),
            layers[2].register_forward_hook(write),
        ]
        with torch.no_grad():
            logits = llama.model(ids).logits[0]
        for handle in handles:
            handle.remove()
        total += float(F.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum"))
        predictions += ids.shape[1] - 1
    assert found.loss.ce_sae == pytest.approx(total / predictions, rel=1e-5)
    write_reports(found, tmp_path)
    assert "resid_post.1 → resid_post.2" in (tmp_path / "report.md").read_text()


def test_an_sae_inside_a_block_is_evaluated(tmp_path, model_folders, corpus, params):
    record(
        TraceParams(
            model=str(model_folders["llama"]),
            out=str(tmp_path / "acts"),
            layers=(1,),
            site="mlp_out",
            text=(str(corpus),),
            tokens=1500,
            context_length=32,
            held_out=0.2,
            dtype="float32",
            device="cpu",
        )
    )
    save_sae(random_sae("mlp_out.1"), tmp_path / "sae")
    found = evaluate(
        msgspec.structs.replace(params, sae_path=str(tmp_path / "sae"), activations=str(tmp_path / "acts"))
    )
    assert found.loss is not None
    assert found.loss.ce_zero != found.loss.ce_model


# --- probing --------------------------------------------------------------------------------------------


def test_auroc_by_counting_pairs():
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    pairs = score[positive][:, None] - score[~positive][None]
    assert auroc(score, positive) == pytest.approx(float(((pairs > 0) + 0.5 * (pairs == 0)).mean()))


def test_a_probe_finds_the_latent_that_tells():
    """Latent 7 carries the label with some noise, all others are noise; documents are kept apart."""
    rng = np.random.default_rng(0)
    n, latents = 4000, 50
    label = (rng.random(n) < 0.3).astype(np.int8)
    dense = np.abs(rng.normal(0, 1, (n, latents))) * (rng.random((n, latents)) < 0.1)
    dense[:, 7] = np.abs(label + rng.normal(0, 0.4, n))
    full = torch.from_numpy(dense.astype(np.float32))
    values, indices = full.topk(latents)
    x = torch.from_numpy(np.column_stack([label + rng.normal(0, 0.4, n), rng.normal(0, 1, (n, 5))]))
    doc = np.arange(n) // 20
    found = probe(values, indices, x.float(), {"it": label, "rare": np.zeros(n, np.int8)}, doc, latents)
    assert [t.name for t in found.tasks] == ["it"]
    assert found.tasks[0].latents[0] == 7
    test = doc % 2 == 1
    alone = auroc(dense[test, 7], label[test] == 1)
    assert found.auroc[1] == pytest.approx(alone, abs=1e-6)
    assert found.auroc[16] == pytest.approx(alone, abs=0.02)
    assert found.auroc_dense == pytest.approx(auroc(x[test, 0].numpy(), label[test] == 1), abs=0.01)


def test_properties_of_text():
    texts = [" The", " 42", ",", '"', " big", '"', "\n"]
    columns = text_properties([np.arange(7), np.arange(2)], lambda ids: [texts[t] for t in ids])
    assert columns["the token is capitalised"].tolist() == [1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert columns["the token is a number"].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 1]
    assert columns["the token before is punctuation"].tolist() == [-1, 0, 0, 1, 1, 0, 1, -1, 0]
    assert columns["the next token is a line break"].tolist() == [0, 0, 0, 0, 0, 1, -1, 0, -1]
    assert columns["inside a quotation"].tolist() == [0, 0, 0, 1, 1, 0, 0, 0, 0]


# --- comparison -----------------------------------------------------------------------------------------


def test_a_comparison_names_what_differs(tmp_path, sae_folder, params):
    save_sae(random_sae("resid_post.2"), tmp_path / "random")
    compared = compare(
        CompareParams(
            sae_path=(str(sae_folder), str(tmp_path / "random"), str(sae_folder)),
            activations=params.activations,
            out=str(tmp_path / "out"),
            loss_contexts=3,
            bootstrap=200,
            device="cpu",
        )
    )
    first, random, again = compared.evaluations
    assert (first.name, random.name, again.name) == ("sae (1)", "random", "sae (2)")
    assert compared.differences[0].difference == pytest.approx(random.ordinary.fvu - first.ordinary.fvu)
    assert compared.differences[0].distinguishable
    assert compared.differences[1].difference == 0
    assert compared.differences[1].distinguishable is False
    readings = [row[-1] for row in difference_table(compared)[1:]]
    assert readings == ["worse", "no difference shown"]
    out = tmp_path / "out"
    for name in ("comparison.html", "comparison.md"):
        text = (out / name).read_text()
        assert "<script" not in text
        assert "random" in text
        assert f"{first.ordinary.fvu:.4g} ★" in text
    assert "<svg" in (out / "comparison.html").read_text()
    assert (out / "random" / "report.html").is_file()
    assert json.loads((out / "comparison.json").read_text())["differences"][0]["distinguishable"] is True


def test_paired_intervals_see_what_separate_ones_do_not():
    """Documents differ far more than the two SAEs do; resampling them together takes that out."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(1, 10, 40)
    hard = rng.uniform(0.05, 0.4, 40)
    one = {d: [float(spread[d] * hard[d]), float(spread[d])] for d in range(40)}
    two = {d: [float(e * 1.03), s] for d, (e, s) in one.items()}
    found = paired_difference("two", two, one, resamples=500, seed=0)
    assert found.distinguishable
    assert 0 < found.interval[0] < found.difference < found.interval[1] < 0.05


def test_the_report_draws_what_it_says(tmp_path: Path, params):
    found = evaluate(msgspec.structs.replace(params, loss_contexts=2))
    assert "would read" in found.honesty or "No token was filtered" in found.honesty
    assert sum(found.usage.firings) == pytest.approx(found.usage.l0 * found.usage.tokens)
    write_reports(found, tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<svg") == 2
    assert "<polyline" in html
    assert found.honesty in (tmp_path / "report.md").read_text()
    assert len(found.positions.fvu) == 16
