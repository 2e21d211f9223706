"""Feature dashboards in Neuronpedia's upload layout (``sae_dashboard/neuronpedia/neuronpedia_export.py``).

``{model}/{layer}-{source set}/`` with ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl``,
``source.jsonl`` and gzipped batches of features and activations. The rows have every column that its importer
(``apps/webapp/lib/db/import.ts``) requires and none that its tables (``prisma/schema.prisma``) do not have.
"""

from __future__ import annotations

import gzip
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microscope.errors import MicroscopeError
from microscope.naming import public_name
from microscope.params import Site
from microscope.params.features import ANALYSIS, DETAILS, Analysis, Example, FeatureDetails
from microscope.progress import SILENT, Progress
from microscope.sae import SparseAutoencoder

_BATCH = 256
_CREATOR_NAME = "interpretability-workbench"
# Rows belong to a user of the instance; this one is in every instance's seed.
_CREATOR_ID = "clkht01d40000jv08hvalcvly"
_KINDS = {
    "resid_post": "res",
    "resid_mid": "res-mid",
    "attn_out": "att",
    "mlp_out": "mlp",
    "attn_z": "att-z",
    "mlp_act": "mlp-act",
}


def write_dashboards(sae: SparseAutoencoder, analysis: Path, out: Path, progress: Progress = SILENT) -> int:
    """Write all features of an analysis; returns their number.

    Raises:
        MicroscopeError: ``no_analysis``.
    """
    source_file = analysis / DETAILS
    if not source_file.is_file():
        raise MicroscopeError(
            "no_analysis", f"There is no analysis at '{analysis}'.", "Run `microscope features --out`."
        )
    site, model = Site.parse(sae.config.site), model_id(str(sae.config.model.get("reference") or ""))
    source_set = f"{_KINDS[site.kind]}-{sae.config.architecture}-{sae.config.n_latents}"
    source = f"{site.layer}-{source_set}"
    folder = out / model / source
    for part in ("features", "activations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write_places(folder, sae, analysis, model, source, source_set)
    total = 0
    with progress.phase("writing dashboards", sae.config.n_latents, "features"):
        for number, batch in enumerate(_batches(source_file)):
            rows = [_feature(sae, d, model, source, source_set) for d in batch]
            examples = [_activation(d, e, model, source) for d in batch for e in d.examples]
            _zipped(folder / "features" / f"batch-{number}.jsonl.gz", rows)
            _zipped(folder / "activations" / f"batch-{number}.jsonl.gz", examples)
            total += len(batch)
            progress.advance(total)
        progress.advance(total, final=True)
    return total


def model_id(reference: str) -> str:
    """Neuronpedia's name of a model: the last part of its reference, in lower case, dots and all."""
    name = public_name(reference).rpartition("/")[2].removesuffix(".gguf").lower()
    return re.sub(r"[^a-z0-9._-]+", "-", name).strip(".-") or "model"


def _write_places(
    folder: Path, sae: SparseAutoencoder, analysis: Path, model: str, source: str, source_set: str
) -> None:
    """The rows that features and activations refer to: release, model, source set and source."""
    config, about = sae.config, sae.config.model
    name = public_name(str(about.get("reference") or ""))
    what = (
        f"{config.architecture} {'transcoder' if config.is_transcoder else 'SAE'}, {config.n_latents} latents"
    )
    shared = {"creatorId": _CREATOR_ID, "visibility": "PUBLIC"}
    release = {
        **shared,
        "name": f"{model}-{source_set}",
        "description": what,
        "descriptionShort": what,
        "urls": [],
        "creatorName": _CREATOR_NAME,
        "creatorNameShort": _CREATOR_NAME,
    }
    layers = about.get("n_layers")
    model_row = {
        **shared,
        "id": model,
        "displayName": model,
        "displayNameShort": model,
        "owner": name.rpartition("/")[0] or _CREATOR_NAME,
        "instruct": bool(re.search(r"-(it|instruct|chat)$", model)),
        "layers": layers if isinstance(layers, int) else 0,
        "neuronsPerLayer": 0,
    }
    set_row = {
        **shared,
        "modelId": model,
        "name": source_set,
        "description": what,
        "type": "sae",
        "creatorName": _CREATOR_NAME,
        "urls": [],
        "releaseName": release["name"],
        "hasDashboards": True,
    }
    source_row = {
        **shared,
        "modelId": model,
        "id": source,
        "setName": source_set,
        "hasDashboards": True,
        "saelensConfig": json.loads(msgspec.json.encode(config)),
        "notes": "; ".join(f"assumed {sentence}" for sentence in config.assumed) or None,
        **_read(analysis),
    }
    source_row["saelensConfig"]["model"]["reference"] = name
    for file, row in (
        ("release", release),
        ("model", model_row),
        ("sourceset", set_row),
        ("source", source_row),
    ):
        (folder / f"{file}.jsonl").write_text(json.dumps(row) + "\n")


def _read(analysis: Path) -> dict[str, int]:
    """How much text the examples come from, where the analysis says so."""
    path = analysis / ANALYSIS
    if not path.is_file():
        return {}
    found = msgspec.json.decode(path.read_bytes(), type=Analysis)
    return {
        "num_prompts": found.tokens // max(1, found.context_length),
        "num_tokens_in_prompt": found.context_length,
    }


def _feature(
    sae: SparseAutoencoder, details: FeatureDetails, model: str, source: str, source_set: str
) -> dict[str, Any]:
    edges = np.linspace(0, details.max_activation, len(details.histogram) + 1)
    return {
        "modelId": model,
        "layer": source,
        "index": str(details.index),
        "creatorId": _CREATOR_ID,
        "sourceSetName": source_set,
        "maxActApprox": details.max_activation,
        "frac_nonzero": details.density,
        "hasVector": True,
        "vector": sae.decoder_direction(details.index).tolist(),
        "vectorDefaultSteerStrength": details.max_activation,
        # where the vector is added: what a transcoder writes
        "hookName": Site.parse(sae.config.site_out or sae.config.site).transformer_lens_name,
        "topkCosSimIndices": [n.index for n in details.decoder_neighbours],
        "topkCosSimValues": [n.cosine for n in details.decoder_neighbours],
        "pos_str": [t.text for t in details.promoted],
        "pos_values": [t.weight for t in details.promoted],
        "neg_str": [t.text for t in details.suppressed],
        "neg_values": [t.weight for t in details.suppressed],
        "freq_hist_data_bar_heights": details.histogram,
        "freq_hist_data_bar_values": ((edges[:-1] + edges[1:]) / 2).tolist(),
    }


def _activation(details: FeatureDetails, example: Example, model: str, source: str) -> dict[str, Any]:
    values = example.values
    # The id depends on the content, so that an upload can be repeated.
    name = f"{model}/{source}/{details.index}/{example.doc}/{example.pos}"
    return {
        "id": uuid.uuid5(uuid.NAMESPACE_URL, name).hex,
        "modelId": model,
        "layer": source,
        "index": str(details.index),
        "tokens": example.texts,
        "values": values,
        "maxValue": max(values),
        "maxValueTokenIndex": int(np.argmax(values)),
        "minValue": min(values),
        "creatorId": _CREATOR_ID,
    }


def _batches(file: Path) -> Iterator[list[FeatureDetails]]:
    decoder = msgspec.json.Decoder(FeatureDetails)
    batch: list[FeatureDetails] = []
    with file.open("rb") as stream:
        for line in stream:
            batch.append(decoder.decode(line))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
