"""The files of an analysis: one JSON line per feature for pages, Parquet tables for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from microscope.params.features import DETAILS, EXAMPLES, NEIGHBOURS, TABLE, TOKENS, FeatureDetails
from microscope.progress import Progress

_BATCH = 1024
_NUMBERS = {
    "index": pa.int32(),
    "density": pa.float64(),
    "firings": pa.int64(),
    "max_activation": pa.float64(),
    "mean_activation": pa.float64(),
    "p999": pa.float64(),
    "dead": pa.bool_(),
    "decoder_norm": pa.float64(),
    "encoder_decoder_cosine": pa.float64(),
}
_SCHEMAS = {
    TABLE: pa.schema({**_NUMBERS, "histogram": pa.list_(pa.int64())}),
    EXAMPLES: pa.schema(
        {
            "feature": pa.int32(),
            "group": pa.int16(),
            "doc": pa.int32(),
            "pos": pa.int32(),
            "peak": pa.int32(),
            "max": pa.float32(),
            "texts": pa.list_(pa.string()),
            "values": pa.list_(pa.float32()),
        }
    ),
    TOKENS: pa.schema(
        {
            "feature": pa.int32(),
            "kind": pa.string(),
            "token": pa.int32(),
            "text": pa.string(),
            "value": pa.float32(),
            "count": pa.int64(),
        }
    ),
    NEIGHBOURS: pa.schema(
        {
            "feature": pa.int32(),
            "kind": pa.string(),
            "other": pa.int32(),
            "value": pa.float32(),
            "lift": pa.float32(),
        }
    ),
}


def write_details(folder: Path, details: Iterator[FeatureDetails], total: int, progress: Progress) -> int:
    """Stream all features to disk; returns the number of dead ones."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    dead = 0
    tables = {name: pq.ParquetWriter(folder / name, schema) for name, schema in _SCHEMAS.items()}
    batch: list[FeatureDetails] = []
    with progress.phase("describing features", total, "features"), (folder / DETAILS).open("wb") as stream:
        for number, feature in enumerate(details, 1):
            stream.write(encoder.encode(feature) + b"\n")
            dead += feature.dead
            batch.append(feature)
            if len(batch) == _BATCH or number == total:
                _append(tables, batch)
                batch = []
                progress.advance(number, final=number == total)
    for table in tables.values():
        table.close()
    return dead


def _append(tables: dict[str, pq.ParquetWriter], batch: list[FeatureDetails]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables}
    for feature in batch:
        rows[TABLE].append({name: getattr(feature, name) for name in _SCHEMAS[TABLE].names})
        for example in (*feature.examples, *feature.quantile_examples):
            rows[EXAMPLES].append({"feature": feature.index, **msgspec.to_builtins(example)})
        rows[TOKENS] += [
            {"feature": feature.index, "kind": "fires_on", **msgspec.to_builtins(t), "value": t.mean}
            for t in feature.top_tokens
        ]
        for kind in ("promoted", "suppressed"):
            rows[TOKENS] += [
                {"feature": feature.index, "kind": kind, "token": t.token, "text": t.text, "value": t.weight}
                for t in getattr(feature, kind)
            ]
        for kind, name in (("decoder", "decoder_neighbours"), ("encoder", "encoder_neighbours")):
            rows[NEIGHBOURS] += [
                {"feature": feature.index, "kind": kind, "other": n.index, "value": n.cosine}
                for n in getattr(feature, name)
            ]
        rows[NEIGHBOURS] += [
            {
                "feature": feature.index,
                "kind": "fires_with",
                "other": n.index,
                "value": n.share,
                "lift": n.lift,
            }
            for n in feature.partners
        ]
    for name, table in tables.items():
        table.write_table(pa.Table.from_pylist(rows[name], schema=_SCHEMAS[name]))
