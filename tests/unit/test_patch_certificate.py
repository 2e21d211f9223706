"""Certificates: what they measure, held against measurements of their own, and what they refuse."""

from __future__ import annotations

import json
import math

import gguf
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from microscope.cli import main
from microscope.params import CertifyParams, Edit, EditPlan, FeatureRef, PatchExportParams, Positions
from microscope.patching.certify import certify, html_certificate, write_certificate
from microscope.patching.certify.measure import Rows, compare, parity
from microscope.patching.certify.reload import read_control_vector, read_gguf_lora
from microscope.patching.export import export_patch
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
        "peft", activations=str(recording_folder), rank=4, fit_seconds=6, fit_tokens=2000, fit_blocks=0
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
        "gguf_lora", activations=str(recording_folder), fit_seconds=2, fit_tokens=500, fit_blocks=0, rank=3
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
