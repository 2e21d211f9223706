"""Certificates: what they measure, held against measurements of their own, and what they refuse."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import time

import gguf
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from microscope.cli import main
from microscope.params import CertifyParams, Edit, EditPlan, FeatureRef, PatchExportParams, Positions
from microscope.patching.adapters import LowRank
from microscope.patching.certify import Certificate, certify, html_certificate, write_certificate
from microscope.patching.certify.measure import Rows, compare, parity
from microscope.patching.certify.reload import read_control_vector, read_gguf_lora
from microscope.patching.export import export_patch, read_manifest
from microscope.patching.hooks import PatchedModel
from microscope.patching.plan_file import PatchFile, load_parts, read_patch, write_patch
from tests.unit.test_patch_export import EVERYWHERE, Lab, logits, refused


@pytest.fixture
def lab(tmp_path, model_folders, sae):
    """The llama with the SAE that was trained on its recording."""
    return Lab(tmp_path, model_folders["llama"], sae)


def measure(lab: Lab, folder, **rest):
    params = {
        "export": str(folder),
        "out": str(lab.folder / "certificate"),
        "sae_path": (str(lab.folder / "sae"),),
        "contexts": 8,
        "bootstrap": 200,
        "device": "cpu",
    }
    return certify(CertifyParams(**{**params, **rest}))


def busiest(lab: Lab, recording_folder) -> int:
    """The latent that fires most on the recording."""
    from microscope.activations import Recording

    recording = Recording(recording_folder)
    chunk = next(iter(recording.chunks("train", recording.site(lab.sae.config.site))))
    codes = lab.sae.encode(torch.from_numpy(chunk.values).float())
    return int(torch.bincount(codes.indices[codes.values > 0]).argmax())


@pytest.mark.parametrize("target", ["control_vector", "merged", "bundle"])
def test_an_exact_export_is_certified(lab, recording_folder, target):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    found = measure(lab, lab.export(target), activations=str(recording_folder))
    assert found.export.grade == "exact"
    assert found.clean is not None
    assert found.clean.max_abs_logit <= 1e-4
    assert found.clean.top1_agreement == 1.0
    assert found.passed, found.gates
    assert found.null_exact is (None if target == "merged" else True)
    assert found.effect.recovered == pytest.approx(1.0, abs=0.02)
    assert found.live is not None
    assert found.live.contexts == 8
    assert 0 < found.live.export <= 1e-4
    assert found.live.reference <= 1e-4


def test_a_certificate_notices_when_the_live_path_says_something_else(lab, recording_folder, monkeypatch):
    """The promise is about what people saw: a replay that forgets an edit blocks the export."""
    from microscope.patching.certify import live

    bind = live.bind
    monkeypatch.setattr(live, "bind", lambda plan, **rest: bind(EditPlan(edits=plan.edits[:1]), **rest))
    lab.save(
        lab.edit("add", 3, strength=0.02, positions=EVERYWHERE),
        lab.edit("add", 4, strength=0.02, positions=EVERYWHERE),
    )
    found = measure(lab, lab.export("merged"), activations=str(recording_folder))
    assert {gate.name for gate in found.gates if not gate.passed} == {"Same logits", "Measured is live"}


def test_a_strong_patch_fails_on_collateral_however_exact_the_export(lab, recording_folder):
    lab.save(lab.edit("add", 3, strength=20.0, positions=EVERYWHERE))
    found = measure(lab, lab.export("merged"), activations=str(recording_folder))
    failed = [gate.name for gate in found.gates if not gate.passed]
    assert not found.passed
    assert "Collateral" in failed
    assert "Same logits" not in failed
    assert found.collateral.kl.value == pytest.approx(found.collateral_of_patch.kl.value, rel=1e-3)


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


def test_gguf_files_are_what_the_reader_and_llama_cpp_expect(lab, recording_folder):
    lab.save(
        lab.edit("add", 3, strength=2.0, positions=EVERYWHERE),
        lab.edit("add", 4, strength=-1.0, positions=EVERYWHERE),
    )
    file = lab.export("control_vector") / "control_vector.gguf"
    reader = gguf.GGUFReader(file)
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 1
    (tensor,) = reader.tensors
    assert (tensor.name, list(tensor.shape), tensor.tensor_type.name) == ("direction.2", [32], "F32")
    rows = lab.sae.W_dec / lab.sae.W_dec.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(tensor.data, (2 * rows[3] - rows[4]).numpy(), atol=1e-6)
    assert read_control_vector(file).keys() == {2}

    lab.save(lab.edit("project", 5, strength=0.0))
    folder = lab.export(
        "gguf_lora", activations=str(recording_folder), fit_steps=2, fit_tokens=500, fit_blocks=0, rank=3
    )
    reader = gguf.GGUFReader(folder / "lora.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["adapter.lora.alpha"].contents() == 3.0
    shapes = {t.name: list(t.shape) for t in reader.tensors}
    # dimensions as llama.cpp counts them, fastest first: ne[0] of A is the module's input
    assert shapes["blk.2.ffn_down.weight.lora_a"] == [64, 3]
    assert shapes["blk.2.ffn_down.weight.lora_b"] == [3, 32]
    assert shapes["blk.2.attn_output.weight.lora_a"] == [32, 3]


def test_what_cannot_be_exported_says_why(lab, model_folders, tmp_path):
    lab.save(lab.edit("ablate", 5))
    assert "constant" in refused("not_possible", lab.export, "control_vector").message
    refused("no_text", lab.export, "peft")
    lab.save(lab.edit("ablate", 5, enabled=False))
    refused("not_possible", lab.export, "bundle")
    other = tmp_path / "other"
    other.mkdir()
    gpt2 = Lab(other, model_folders["gpt2"])
    gpt2.save(gpt2.edit("ablate_everywhere", 5))
    assert "merged" in refused("not_possible", gpt2.export, "peft").hint


def test_certificates_refuse_other_files_and_other_models(lab, corpus, model_folders):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    folder = lab.export("control_vector")
    refused("no_text", measure, lab, folder)
    refused("wrong_model", measure, lab, folder, text=(str(corpus),), model=str(model_folders["qwen2"]))
    with (folder / "control_vector.gguf").open("r+b") as stream:
        stream.seek(-4, 2)
        stream.write(b"\0\0\0\1")
    refused("export_changed", measure, lab, folder, text=(str(corpus),))
    refused("no_export", measure, lab, lab.folder, text=(str(corpus),))


def test_a_patch_that_never_acts_is_not_certified_as_approximate(lab, corpus):
    """Parity where the patch acts cannot be measured then; an unmeasured gate stays closed."""
    far = Positions(mode="from", start=10_000, include_sinks=True)
    lab.save(lab.edit("add", 3, strength=0.02, positions=far))
    found = measure(lab, lab.export("merged"), text=(str(corpus),))
    assert {g.name: g.passed for g in found.gates}["Share of effect kept"] is None
    assert not found.passed


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


def test_prompts_show_what_held_out_text_does_not(lab, recording_folder):
    """The patch acts on a word the recording lacks: silence does not pass, a prompt with that word does."""
    lab.save(lab.edit("add", 3, strength=0.5, positions=Positions(mode="from", start=40, include_sinks=True)))
    folder = lab.export("bundle")
    silent = measure(lab, folder, activations=str(recording_folder))
    assert silent.effect.share is None
    assert not silent.passed
    assert any("nowhere" in note for note in silent.notes)
    assert "could not be measured" in html_certificate(silent)
    prompt = " ".join(["the state of union is strong and people ask congress"] * 5)
    spoken = measure(lab, folder, activations=str(recording_folder), triggers=(prompt, "peace"))
    assert spoken.passed, spoken.gates
    assert spoken.effect.share.value > 0.999
    assert (spoken.effect.prompts, spoken.effect.contexts) == (1, 1)
    assert any("1 of the 2 prompts" in note for note in spoken.notes)
    # The export itself may name them.
    kept = measure(lab, lab.export("bundle", triggers=(prompt,)), activations=str(recording_folder))
    assert kept.triggers == (prompt,)
    assert kept.passed


def test_a_patch_that_acts_while_generating_is_measured_there(lab, recording_folder):
    while_generating = Positions(mode="generated", include_sinks=True)
    lab.save(lab.edit("add", 3, strength=0.02, positions=while_generating))
    found = measure(lab, lab.export("bundle"), activations=str(recording_folder))
    assert found.effect.positions > 0
    assert found.effect.share.value > 0.999
    assert found.live.reference <= 1e-4
    assert found.passed, found.gates
    assert any("second half" in note for note in found.notes)


def test_differences_of_logits_count_in_their_spread(lab, recording_folder):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    small = measure(lab, lab.export("merged"), activations=str(recording_folder))
    values = {gate.name: gate.value for gate in small.gates}
    worst = max(small.clean.max_abs_logit, small.trigger.max_abs_logit, small.live.export)
    assert values["Same logits"] == pytest.approx(worst / small.spread)
    ids = torch.randint(3, 150, (1, 12), generator=torch.Generator().manual_seed(0))
    base = logits(lab.fresh(), ids)[0]
    assert small.spread == pytest.approx(float(base.std(-1).mean()), rel=0.3)


def test_a_certificate_of_an_older_version_can_still_be_read(lab, recording_folder):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    found = msgspec.to_builtins(measure(lab, lab.export("bundle"), activations=str(recording_folder)))
    for name in ("spread", "documents", "notes"):
        del found[name]
    for name in ("share", "share_of_half", "positions", "contexts", "prompts"):
        del found["effect"][name]
    for gate in found["gates"]:
        del gate["at_least"], gate["interval"]
    del found["export"]["triggers"]
    older = msgspec.convert(found, type=Certificate)
    assert older.effect.recovered == pytest.approx(1.0)
    assert "could not be measured" in html_certificate(older)


def test_files_name_no_folder_of_their_maker(lab, recording_folder):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    for target in ("bundle", "merged", "control_vector"):
        folder = lab.export(target)
        for file in folder.rglob("*"):
            assert file.is_dir() or str(lab.model.parent).encode() not in file.read_bytes(), file
        found = measure(lab, folder, activations=str(recording_folder))  # finds the model all the same
        assert found.export.base.reference == lab.model.name


def test_what_did_not_pass_comes_with_what_to_do(lab, recording_folder):
    """In the page, in the terminal, and not where all is well."""
    index = busiest(lab, recording_folder)
    lab.save(lab.edit("scale", index, strength=0.5))
    folder = lab.export(
        "peft", activations=str(recording_folder), rank=1, fit_steps=1, fit_tokens=1000, fit_blocks=0
    )
    arguments = ["patch", "certify", "--export", folder, "--sae-path", lab.folder / "sae", "--contexts", 4,
                 "--activations", recording_folder, "--out", lab.folder / "certificate"]  # fmt: skip
    done = CliRunner().invoke(main, [*map(str, arguments)])
    said = " ".join(done.output.split())
    found = msgspec.json.decode(
        (lab.folder / "certificate" / "certificate.json").read_bytes(), type=Certificate
    )
    low, high = found.effect.share.interval
    page = (lab.folder / "certificate" / "certificate.html").read_text()
    for text in (said, page):
        assert f"{found.effect.share.value:.1%} [{low:.1%}, {high:.1%}] of the patch" in text
        assert "Did not pass: Share of effect kept" in text
        assert "--fit-steps, 1 here" in text
        assert "--rank, 1 here" in text
        assert "--target bundle" in text
    assert not any(
        "Did not pass" in note
        for note in measure(lab, lab.export("bundle"), activations=str(recording_folder)).notes
    )


def test_statistics_by_hand():
    generator = torch.Generator().manual_seed(0)
    base, patched, half, export = (torch.randn(5, 11, generator=generator) for _ in range(4))
    tokens = torch.tensor([1, 4, 2, 9, 3])
    columns = compare(base, patched, half, export, tokens)
    p, e = patched.double().softmax(-1).numpy(), export.double().softmax(-1).numpy()
    kl = (p * np.log(p / e)).sum(1)
    np.testing.assert_allclose(columns["kl_patch_export"].numpy(), kl, atol=1e-6)
    np.testing.assert_allclose(
        columns["loss_export"].numpy()[:4], -np.log(e[range(4), tokens[1:]]), atol=1e-6
    )
    assert columns["loss_export"][4] == 0
    rows = Rows()
    rows.add(0, columns)
    found = parity(rows, 100, 0)
    assert found is not None
    assert found.kl.value == pytest.approx(kl.mean(), rel=1e-5)
    assert found.kl.interval is None, "one document says nothing about others"
    assert found.kl_max == pytest.approx(kl.max(), rel=1e-5)
    assert found.max_abs_logit == pytest.approx(float((patched - export).abs().max()))


def test_command_line_from_feature_to_certificate(lab, recording_folder, tmp_path):
    """create, apply, export, certify in a row, each a command; the report names verdict, gates and hashes."""

    def run(*arguments: object) -> dict:
        done = CliRunner().invoke(main, ["patch", *map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    patch, model = tmp_path / "p.json", lab.model
    made = run("create", "--sae-path", lab.folder / "sae", "--feature", 3, "--kind", "add", "--strength", 0.02,
               "--include-sinks", "--model", model, "--out", patch)  # fmt: skip
    assert made["plan"]["edits"][0]["feature"] == {"sae": lab.fingerprint, "index": 3}
    run("create", "--sae-path", lab.folder / "sae", "--feature", 4, "--kind", "add", "--strength", 0.01,
        "--include-sinks", "--model", model, "--out", patch)  # fmt: skip
    tried = run("apply", "--patch", patch, "--prompt", "the state of union", "--dtype", "float32")
    assert len(tried["receipts"]) == 2
    assert sum(s["patched"] for s in tried["shifts"]) <= 1
    run(
        "export",
        "--patch",
        patch,
        "--target",
        "merged",
        "--out",
        tmp_path / "m",
        "--base-name",
        "owner/llama",
    )
    found = run("certify", "--export", tmp_path / "m", "--model", model, "--sae-path", lab.folder / "sae",
                "--activations", recording_folder, "--contexts", 6, "--out", tmp_path / "c")  # fmt: skip
    assert found["passed"]
    page = (tmp_path / "c" / "certificate.html").read_text()
    assert "passed" in page
    assert found["export"]["plan_fingerprint"] in page
    assert str(lab.folder) not in page, "paths of this machine do not belong in a certificate"
    assert json.loads((tmp_path / "c" / "certificate.json").read_text())["format"] == "microscope-certificate"


def test_pages_escape_what_they_show(lab, recording_folder):
    lab.save(lab.edit("add", 3, strength=0.02, positions=EVERYWHERE))
    folder = lab.export("control_vector", base_name="<script>alert(1)</script>")
    found = measure(lab, folder, activations=str(recording_folder), model=str(lab.model))
    assert "<script>" not in html_certificate(found)
    write_certificate(found, lab.folder / "c")
    assert (lab.folder / "c" / "certificate.json").is_file()


def test_a_patch_without_its_autoencoder_is_refused(lab, tmp_path):
    plan = EditPlan(
        edits=(Edit(kind="ablate", site="resid_post.2", feature=FeatureRef(sae="f" * 32, index=1)),)
    )
    write_patch(PatchFile(plan=plan, model=str(lab.model)), tmp_path / "patch.json")
    refused("sae_missing", lab.export, "bundle")
