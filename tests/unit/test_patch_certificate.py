"""Certificates: what they measure, held against measurements of their own, and what they refuse."""

from __future__ import annotations

import json

import gguf
import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from microscope.cli import main
from microscope.params import Edit, EditPlan, FeatureRef, Positions
from microscope.patching.certify import Certificate, html_certificate, write_certificate
from microscope.patching.certify.measure import Rows, compare, parity
from microscope.patching.certify.reload import read_control_vector
from microscope.patching.plan_file import PatchFile, write_patch
from tests.patch_lab import EVERYWHERE, Lab, busiest, logits, measure
from tests.refusals import refused


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
