"""Dashboards for Neuronpedia: what its importer needs is there, and nothing of this machine."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from microscope.errors import MicroscopeError
from microscope.features import analyse
from microscope.params import AnalyseParams, ExportParams
from microscope.sae import load_sae


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
