"""Exports that are fitted: what a fit reads and reaches, and what is refused."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import time

import pytest
import torch
from click.testing import CliRunner

from microscope.cli import main
from microscope.params import EditPlan, PatchExportParams
from microscope.patching.adapters import LowRank
from microscope.patching.certify import html_certificate
from microscope.patching.certify.reload import read_gguf_lora
from microscope.patching.export import export_patch, read_manifest
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import load_parts, read_patch
from tests.patch_lab import busiest, logits, measure
from tests.refusals import refused


def test_a_fitted_adapter_is_measured_and_better_than_nothing(lab, recording_folder):
    """The numbers are recomputed here with PEFT and plain arithmetic on the same held-out windows."""
    from peft import PeftModel

    from microscope.patching.fitting import held_out_windows

    index = busiest(lab, recording_folder)
    lab.save(lab.edit("scale", index, strength=0.5))
    folder = lab.export(
        "peft", activations=str(recording_folder), rank=4, fit_steps=20, fit_tokens=2000, fit_blocks=0
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4
    found = measure(lab, folder, activations=str(recording_folder))
    assert found.export.fit is not None
    assert found.export.fit.kl_trigger[1] <= found.export.fit.kl_trigger[0]
    assert found.trigger is not None
    assert found.effect.recovered is not None
    assert found.effect.recovered > 0.3
    (feature,) = found.effect.features
    assert feature.patched < feature.base
    assert abs(feature.export - feature.patched) < abs(feature.base - feature.patched)
    assert found.null_exact is True
    assert found.merged_max_abs_logit is not None
    assert found.merged_max_abs_logit < 1e-4

    patch = read_patch(lab.folder / "patch.json")
    saes, adapters = load_parts(patch, lab.loaded)
    plain, _ = held_out_windows(
        lab.loaded, patch.plan, saes, activations=str(recording_folder), text=(), contexts=8
    )
    wrapped = PeftModel.from_pretrained(lab.fresh(), str(folder))
    total = positions = loss = loss_base = 0.0
    for window in plain:
        ids = torch.from_numpy(window.tokens)[None]
        p = PatchedModel(lab.loaded, patch.plan, saes, adapters)(ids)[0][0].double().log_softmax(-1)
        e = logits(wrapped, ids)[0].double().log_softmax(-1)
        b = logits(lab.fresh(), ids)[0].double().log_softmax(-1)
        total += float((p.exp() * (p - e)).sum())
        positions += len(window.tokens)
        loss += float(torch.nn.functional.nll_loss(e[:-1], ids[0, 1:], reduction="sum"))
        loss_base += float(torch.nn.functional.nll_loss(b[:-1], ids[0, 1:], reduction="sum"))
    assert found.clean.kl.value == pytest.approx(total / positions, rel=1e-3)
    change = math.exp((loss - loss_base) / (positions - len(plain))) - 1
    assert found.collateral.perplexity_change.value == pytest.approx(change, abs=1e-5)
    again = lab.folder / "again"
    export_patch(
        PatchExportParams(
            patch=str(lab.folder / "patch.json"),
            out=str(again),
            target="gguf_lora",
            rank=4,
            compiled=str(folder),
            device="cpu",
        )
    )  # no text is given: the fit of the adapter is used again
    deltas = read_gguf_lora(again / "lora.gguf", lab.loaded)
    state = {n: t for n, t in wrapped.state_dict().items() if "lora_" in n}
    for path, delta in deltas.items():
        for letter, tensor in zip("AB", delta, strict=True):
            assert torch.equal(tensor, state[f"base_model.model.{path}.lora_{letter}.default.weight"])


def test_contexts_come_from_all_documents_and_never_from_what_a_fit_read(lab, recording_folder):
    """The same corpus recorded with another share held out: some of it is what the fit was made on."""
    from microscope.activations import Recording
    from microscope.patching.fitting import SeenText, held_out_windows, training_windows

    plan = EditPlan(edits=(lab.edit("scale", busiest(lab, recording_folder), strength=0.5),))
    saes = {lab.fingerprint: lab.sae}
    recording = Recording(recording_folder)
    documents = {int(d) for c in recording.chunks("held_out", recording.site("resid_post.2")) for d in c.doc}
    text = {"activations": str(recording_folder), "text": ()}
    few, _ = held_out_windows(lab.loaded, plan, saes, **text, contexts=len(documents))
    assert {w.doc for w in few} == documents, "as many documents as there is room for"
    again, _ = held_out_windows(lab.loaded, plan, saes, **text, contexts=len(documents))
    assert [w.tokens.tolist() for w in few] == [w.tokens.tolist() for w in again]
    other, _ = held_out_windows(lab.loaded, plan, saes, **text, contexts=len(documents), seed=1)
    assert [w.tokens.tolist() for w in few] != [w.tokens.tolist() for w in other]
    plain, firing = held_out_windows(lab.loaded, plan, saes, **text, contexts=4)
    assert len(plain) == 4
    assert 0 < len(firing) <= 2
    assert all(w.fires for w in firing)

    seen = SeenText.of(
        [few[0], few[1]._replace(tokens=few[1].tokens[3:])]
    )  # cut elsewhere, but the same text
    rest, _ = held_out_windows(lab.loaded, plan, saes, **text, contexts=10_000, seen=seen)
    kept = [w.tokens.tolist() for w in rest]
    assert few[0].tokens.tolist() not in kept
    assert few[1].tokens.tolist() not in kept
    assert few[2].tokens.tolist() in kept
    everything, _ = held_out_windows(lab.loaded, plan, saes, **text, contexts=10_000)
    refused(
        "text_was_fitted", held_out_windows, lab.loaded, plan, saes, **text, contexts=4, seen=SeenText.of(everything)
    )  # fmt: skip
    trained = SeenText.of(training_windows(lab.loaded, plan, saes, **text, tokens=4000))
    assert not any(trained.holds(w.tokens) for w in everything)


def test_what_a_fit_read_travels_with_its_export(lab, recording_folder, corpus):
    """Fitted on the training part of a recording, measured on files of the same corpus with another split."""
    from microscope.patching.export.manifest import read_seen
    from microscope.patching.fitting import held_out_windows

    lab.save(lab.edit("scale", busiest(lab, recording_folder), strength=0.5))
    folder = lab.export("peft", activations=str(recording_folder), fit_steps=2, fit_tokens=3000, fit_blocks=0)
    seen = read_seen(folder)
    patch = read_patch(lab.folder / "patch.json")
    saes, _ = load_parts(patch, lab.loaded)
    windows, _ = held_out_windows(
        lab.loaded, patch.plan, saes, activations=None, text=(str(corpus),), contexts=10_000
    )
    fresh, _ = held_out_windows(
        lab.loaded, patch.plan, saes, activations=None, text=(str(corpus),), contexts=10_000, seen=seen
    )
    assert len(fresh) <= len(windows)
    assert not any(seen.holds(w.tokens) for w in fresh)
    assert read_seen(lab.export("bundle")) is None


def test_equal_inputs_give_equal_fits_and_a_stop_is_reported(lab, recording_folder, monkeypatch):
    from microscope.patching.fitting import distil

    lab.save(lab.edit("scale", busiest(lab, recording_folder), strength=0.5))
    how = {
        "activations": str(recording_folder),
        "fit_steps": 4,
        "fit_tokens": 2000,
        "fit_blocks": 0,
        "rank": 2,
    }
    files = []
    for slow in (0.0, 0.05):
        plain = distil.Student.logits

        def logits(student: object, tokens: torch.Tensor, slow: float = slow, plain: object = plain):
            time.sleep(slow)
            return plain(student, tokens)

        with monkeypatch.context() as patched:
            patched.setattr(distil.Student, "logits", logits)
            files.append((lab.export("peft", **how) / "adapter_model.safetensors").read_bytes())
    assert files[0] == files[1]
    fit = read_manifest(lab.folder / "peft").fit
    assert (fit.steps, fit.planned_steps, fit.cut_short) == (4, 4, "")
    assert fit.tokens == fit.planned_tokens

    clock = itertools.count(0.0, 0.4)  # a machine on which everything takes long
    monkeypatch.setattr("microscope.progress.Progress.now", lambda _self: next(clock))
    folder = lab.export("peft", **{**how, "fit_steps": 50, "fit_seconds": 6.0})
    fit = read_manifest(folder).fit
    assert 0 < fit.steps < 50 == fit.planned_steps
    assert f"{fit.steps} of 50 steps" in fit.cut_short
    monkeypatch.undo()
    found = measure(lab, folder, activations=str(recording_folder))
    assert any("cut short" in note for note in found.notes)
    assert f"{fit.steps} of 50 steps" in html_certificate(found)


def test_a_fit_that_ends_no_better_than_nothing_is_refused(lab, recording_folder, monkeypatch):
    """Whatever went wrong: here, a start that has nothing to do with the patch and no step to mend it."""
    fit = importlib.import_module("microscope.patching.fitting.fit")
    start = fit.starting_factors

    def wild(*arguments: object) -> dict:
        return {path: LowRank(d.a, torch.ones_like(d.b)) for path, d in start(*arguments).items()}

    monkeypatch.setattr(fit, "starting_factors", wild)
    lab.save(lab.edit("scale", busiest(lab, recording_folder), strength=0.5))
    arguments = ["patch", "export", "--patch", lab.folder / "patch.json", "--out", lab.folder / "bad",
                 "--activations", recording_folder, "--fit-steps", 0, "--fit-tokens", 1000]  # fmt: skip
    done = CliRunner().invoke(main, [*map(str, arguments)])
    assert done.exit_code != 0
    assert "no better than nothing" in done.output
    assert not (lab.folder / "bad" / "export.json").exists()
