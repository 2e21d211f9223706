"""Formats whose files we make ourselves, after their specification; the smoke test; and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from microscope.activations import Recording
from microscope.errors import MicroscopeError
from microscope.features import analyse
from microscope.formats import (
    Hints,
    import_sae,
    read_sae,
    smoke_test,
    smoke_test_on_model,
    smoke_test_on_recording,
    write_sae,
)
from microscope.formats.folding import with_unit_decoder, without_scale
from microscope.models import load_model
from microscope.params import AnalyseParams, ExportParams, ImportParams
from microscope.sae import SaeConfig, architecture, load_sae, save_sae

D, N = 16, 40
PICKLES = Hints(allow_pickle=True)


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        "W_enc": torch.randn(N, D, generator=g) * 0.4,
        "b_enc": torch.randn(N, generator=g) * 0.2,
        "W_dec": torch.randn(N, D, generator=g) * 0.4,
        "b_dec": torch.randn(D, generator=g) * 0.2,
        "threshold": torch.rand(N, generator=g) * 0.5 + 0.1,
    }


def rows() -> torch.Tensor:
    return torch.randn(50, D, generator=torch.Generator().manual_seed(9)) * 2


def jumprelu(t: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    pre = x @ t["W_enc"].T + t["b_enc"]
    return (pre * (pre > t["threshold"])) @ t["W_dec"] + t["b_dec"]


def test_gemma_scope_1(tmp_path):
    t = tensors()
    folder = tmp_path / "gemma-scope-2b-pt-mlp" / "layer_7" / "width_16k" / "average_l0_40"
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz",
        W_enc=t["W_enc"].T,
        W_dec=t["W_dec"],
        b_enc=t["b_enc"],
        b_dec=t["b_dec"],
        threshold=t["threshold"],
    )
    sae = read_sae(folder)
    assert sae.config.site == "mlp_out.7"
    torch.testing.assert_close(sae(rows()), jumprelu(t, rows()), rtol=1e-5, atol=1e-5)


def test_gemma_scope_1_refuses_object_arrays(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([{"a": 1}], dtype=object))
    with pytest.raises(MicroscopeError) as caught:
        read_sae(tmp_path, hints=Hints(site="resid_post.1"))
    assert caught.value.code == "bad_sae"


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2(tmp_path, skip):
    t = tensors()
    stored = {
        "w_enc": t["W_enc"].T,
        "w_dec": t["W_dec"],
        "b_enc": t["b_enc"],
        "b_dec": t["b_dec"],
        "threshold": t["threshold"],
    }
    config = {
        "architecture": "jump_relu",
        "model_name": "gemma-3-270m",
        "hf_hook_point_in": "model.layers.5.output",
    }
    expected = jumprelu(t, rows())
    if skip:
        stored["affine_skip_connection"] = torch.randn(D, D) * 0.1
        config |= {
            "hf_hook_point_in": "model.layers.5.self_attn.o_proj.input",
            "hf_hook_point_out": "model.layers.5.post_feedforward_layernorm.output",
        }
        expected = expected + rows() @ stored["affine_skip_connection"]
    save_file({k: v.contiguous() for k, v in stored.items()}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    sae = read_sae(tmp_path)
    assert sae.config.site == ("attn_z.5" if skip else "resid_post.5")
    assert sae.config.site_out == ("mlp_out.5" if skip else None)
    torch.testing.assert_close(sae(rows()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("by_norm", [False, True])
def test_llama_scope(tmp_path, by_norm):
    """Scaled inputs, threshold in raw units: written out by the authors' definition."""
    t = tensors()
    (tmp_path / "checkpoints").mkdir()
    stored = {
        "encoder.weight": t["W_enc"],
        "encoder.bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
        "decoder.bias": t["b_dec"],
    }
    save_file({k: v.contiguous() for k, v in stored.items()}, tmp_path / "checkpoints" / "final.safetensors")
    hyper = {
        "hook_point_in": "blocks.4.hook_resid_post",
        "hook_point_out": "blocks.4.hook_resid_post",
        "jump_relu_threshold": 0.2,
        "dataset_average_activation_norm": {"in": 5.0, "out": 5.0},
        "sparsity_include_decoder_norm": by_norm,
    }
    (tmp_path / "hyperparams.json").write_text(json.dumps(hyper))
    sae = read_sae(tmp_path)
    s = D**0.5 / 5.0
    pre = (s * rows()) @ t["W_enc"].T + t["b_enc"]
    gate = pre * t["W_dec"].norm(dim=1) if by_norm else pre
    expected = ((pre * (gate > 0.2 * s)) @ t["W_dec"] + t["b_dec"]) / s
    torch.testing.assert_close(sae(rows()), expected, rtol=1e-5, atol=1e-5)


def test_openai_topk_normalises_every_row(tmp_path):
    t = tensors()
    path = tmp_path / "resid_post_mlp_layer_8.pt"
    data = {
        "encoder.weight": t["W_enc"],
        "latent_bias": t["b_enc"],
        "decoder.weight": t["W_dec"].T,
        "pre_bias": t["b_dec"],
        "activation": "TopK",
        "activation_state_dict": {"k": 6},
    }
    torch.save(data, path)
    sae = read_sae(path, hints=PICKLES)
    assert (sae.config.site, sae.config.k) == ("resid_post.8", 6)
    x = rows()
    mean = x.mean(1, keepdim=True)
    std = (x - mean).std(1, keepdim=True)
    pre = ((x - mean) / (std + 1e-5) - t["b_dec"]) @ t["W_enc"].T + t["b_enc"]
    best = pre.topk(6, dim=1)
    f = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
    torch.testing.assert_close(sae(x), (f @ t["W_dec"] + t["b_dec"]) * std + mean, rtol=1e-5, atol=1e-5)


def test_qwen_scope(tmp_path):
    t = tensors()
    folder = tmp_path / "SAE-Res-Qwen3-1.7B-W32K-L0_5"
    folder.mkdir()
    path = folder / "layer3.sae.pt"
    torch.save({"W_enc": t["W_enc"], "W_dec": t["W_dec"].T, "b_enc": t["b_enc"], "b_dec": t["b_dec"]}, path)
    sae = read_sae(path, hints=PICKLES)
    assert (sae.config.site, sae.config.k) == ("resid_post.3", 5)
    pre = rows() @ t["W_enc"].T + t["b_enc"]
    best = pre.topk(5, dim=1)
    f = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
    torch.testing.assert_close(sae(rows()), f @ t["W_dec"] + t["b_dec"], rtol=1e-5, atol=1e-5)


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
    t = tensors()
    np.savez(
        tmp_path / "params.npz",
        W_enc=t["W_enc"].T,
        W_dec=t["W_dec"],
        b_enc=t["b_enc"],
        b_dec=t["b_dec"],
        threshold=t["threshold"],
    )
    with pytest.raises(MicroscopeError, match="--site"):
        read_sae(tmp_path)
    assert read_sae(tmp_path, hints=Hints(site="resid_mid.2")).config.site == "resid_mid.2"


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
        unit = with_unit_decoder(sae)
        torch.testing.assert_close(out(unit), out(sae), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(N, dtype=torch.float64))
    elif name == "topk":
        with pytest.raises(MicroscopeError, match="other latents would win"):
            with_unit_decoder(sae)


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


# --- Neuronpedia ----------------------------------------------------------------------------------------


def test_dashboards_for_neuronpedia(sae_folder, recording_folder, tmp_path):
    from microscope.formats import export_sae

    analyse(
        AnalyseParams(
            sae_path=str(sae_folder), activations=str(recording_folder), out=str(tmp_path / "a"), device="cpu"
        )
    )
    params = ExportParams(
        sae_path=str(sae_folder), out=str(tmp_path / "np"), format="neuronpedia", analysis=str(tmp_path / "a")
    )
    assert export_sae(params)["features"] == 96
    folder = next((tmp_path / "np").glob("*/2-res-topk-96"))
    details = [json.loads(line) for line in (tmp_path / "a" / "details.jsonl").open()]
    with gzip.open(folder / "features" / "batch-0.jsonl.gz", "rt") as stream:
        features = [json.loads(line) for line in stream]
    assert [f["index"] for f in features] == [str(d["index"]) for d in details]
    assert features[5]["pos_str"] == [t["text"] for t in details[5]["promoted"]]
    assert len(features[5]["vector"]) == 32
    with gzip.open(folder / "activations" / "batch-0.jsonl.gz", "rt") as stream:
        activations = [json.loads(line) for line in stream]
    assert len(activations) == sum(len(d["examples"]) for d in details)
    assert all(a["values"][a["maxValueTokenIndex"]] == a["maxValue"] for a in activations)
    assert len({a["id"] for a in activations}) == len(activations)
    for name in ("release", "model", "sourceset", "source"):
        assert json.loads((folder / f"{name}.jsonl").read_text())
    with pytest.raises(MicroscopeError) as caught:
        export_sae(ExportParams(sae_path=str(sae_folder), out=str(tmp_path / "x"), format="neuronpedia"))
    assert caught.value.code == "no_analysis"


def test_native_export_is_a_copy(sae, sae_folder, tmp_path):
    write_sae(sae, tmp_path / "copy", format="native")
    assert load_sae(tmp_path / "copy").config.fingerprint == sae.config.fingerprint
    save_sae(load_sae(sae_folder), tmp_path / "again")
    assert Path(tmp_path / "again" / "sae.json").is_file()


# Columns without a default in Neuronpedia's tables, and all columns its rows may have (prisma/schema.prisma).
REQUIRED = {
    "release": {"name", "description", "creatorName", "creatorId"},
    "model": {"id", "creatorId", "layers", "neuronsPerLayer", "owner"},
    "sourceset": {"modelId", "name", "description", "creatorName", "urls", "creatorId"},
    "source": {"id", "modelId", "setName", "creatorId"},
    "features": {"modelId", "layer", "index"},
    "activations": {
        *(
            "id",
            "tokens",
            "index",
            "layer",
            "modelId",
            "maxValue",
            "maxValueTokenIndex",
            "minValue",
            "values",
        ),
        "creatorId",
    },
}
OPTIONAL = {
    "release": {"visibility", "descriptionShort", "urls", "creatorNameShort"},
    "model": {"visibility", "displayName", "displayNameShort", "instruct"},
    "sourceset": {"visibility", "type", "releaseName", "hasDashboards"},
    "source": {
        *("visibility", "hasDashboards", "saelensConfig", "num_prompts", "num_tokens_in_prompt", "notes"),
    },
    "features": {
        *("creatorId", "sourceSetName", "maxActApprox", "frac_nonzero", "hasVector", "vector", "hookName"),
        *("vectorDefaultSteerStrength", "topkCosSimIndices", "topkCosSimValues", "pos_str", "pos_values"),
        *("neg_str", "neg_values", "freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    },
    "activations": set(),
}


def test_neuronpedias_importer_finds_every_column_it_requires(sae_folder, recording_folder, tmp_path):
    from microscope.formats import export_sae

    analysis = {"out": str(tmp_path / "a"), "device": "cpu"}
    analyse(AnalyseParams(sae_path=str(sae_folder), activations=str(recording_folder), **analysis))
    out = tmp_path / "np"
    export_sae(
        ExportParams(
            sae_path=str(sae_folder), out=str(out), format="neuronpedia", analysis=str(tmp_path / "a")
        )
    )
    folder = next(out.glob("*/*"))
    rows = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").open()]
        for name in ("release", "model", "sourceset", "source")
    }
    for part in ("features", "activations"):
        with gzip.open(folder / part / "batch-0.jsonl.gz", "rt") as stream:
            rows[part] = [json.loads(line) for line in stream]
    for name, found in rows.items():
        for row in found:
            assert set(row) == set(found[0])  # columns are those of the first line
            assert REQUIRED[name] <= set(row) <= REQUIRED[name] | OPTIONAL[name], name
            assert all(row[column] is not None for column in REQUIRED[name])
    (release,), (model,), (source_set,), (source,) = (
        rows[name] for name in ("release", "model", "sourceset", "source")
    )
    assert (folder.parent.name, folder.name) == (model["id"], source["id"])
    assert source_set["releaseName"] == release["name"]
    assert source["setName"] == source_set["name"] == rows["features"][0]["sourceSetName"]
    assert {row["layer"] for row in (*rows["features"], *rows["activations"])} == {source["id"]}
    assert {row["creatorId"] for found in rows.values() for row in found} == {model["creatorId"]}
    place = str(Path(load_sae(sae_folder).config.model["reference"]).parent)
    assert len(place) > 1
    assert place not in json.dumps(rows)  # no path of this machine


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b-instruct"),
        ("google/gemma-2-2b", "gemma-2-2b"),
        ("/models/My Model.v2/", "my-model.v2"),
        ("C:\\models\\tiny-1.1b.gguf", "tiny-1.1b"),
        ("", "model"),
        ("..", "model"),
    ],
)
def test_names_of_models_stay_whole(reference, name):
    from microscope.formats.neuronpedia import model_id

    assert model_id(reference) == name
