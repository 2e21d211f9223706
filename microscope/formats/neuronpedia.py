"""Feature dashboards in Neuronpedia's upload layout (``sae_dashboard/neuronpedia/neuronpedia_export.py``).

``{model}/{layer}-{source set}/`` with ``release.jsonl``, ``model.jsonl``, ``sourceset.jsonl``,
``source.jsonl`` and gzipped batches of features and activations.
"""

from __future__ import annotations

import gzip
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from microscope.errors import MicroscopeError
from microscope.features.details import DETAILS, Example, FeatureDetails
from microscope.params import Site
from microscope.progress import SILENT, Progress
from microscope.sae import SparseAutoencoder

_BATCH = 256
_CREATOR = "interpretability-workbench"
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
    site, model = Site.parse(sae.config.site), _model_id(sae)
    source_set = f"{_KINDS[site.kind]}-{sae.config.architecture}-{sae.config.n_latents}"
    source = f"{site.layer}-{source_set}"
    folder = out / model / source
    for part in ("features", "activations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _lines(
        folder / "release.jsonl",
        [{"name": source_set, "creatorName": _CREATOR, "description": f"{sae.config.architecture} SAE"}],
    )
    _lines(folder / "model.jsonl", [{"id": model, "displayName": model, "owner": ""}])
    _lines(
        folder / "sourceset.jsonl",
        [{"modelId": model, "name": source_set, "type": "sae", "hasDashboards": True}],
    )
    config = json.loads(msgspec.json.encode(sae.config))
    _lines(
        folder / "source.jsonl",
        [
            {
                "modelId": model,
                "id": source,
                "setName": source_set,
                "hookName": site.transformer_lens_name,
                "saelensConfig": config,
            }
        ],
    )
    total = 0
    with progress.phase("writing dashboards", sae.config.n_latents, "features"):
        for number, batch in enumerate(_batches(source_file)):
            rows = [_feature(sae, d, model, source, source_set, site) for d in batch]
            examples = [_activation(d, e, model, source) for d in batch for e in d.examples]
            _zipped(folder / "features" / f"batch-{number}.jsonl.gz", rows)
            _zipped(folder / "activations" / f"batch-{number}.jsonl.gz", examples)
            total += len(batch)
            progress.advance(total)
        progress.advance(total, final=True)
    return total


def _feature(
    sae: SparseAutoencoder, details: FeatureDetails, model: str, source: str, source_set: str, site: Site
) -> dict[str, Any]:
    edges = np.linspace(0, details.max_activation, len(details.histogram) + 1)
    return {
        "modelId": model,
        "layer": source,
        "index": str(details.index),
        "sourceSetName": source_set,
        "maxActApprox": details.max_activation,
        "frac_nonzero": details.density,
        "hasVector": True,
        "vector": sae.decoder_direction(details.index).tolist(),
        "hookName": site.transformer_lens_name,
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
        "creatorId": _CREATOR,
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


def _model_id(sae: SparseAutoencoder) -> str:
    reference = str(sae.config.model.get("reference") or "model")
    return Path(reference).stem.lower()


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _zipped(path: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
