"""A table with columns of every kind."""

from __future__ import annotations

import pyarrow as pa


def table() -> pa.Table:
    return pa.table(
        {
            "text": ["one", "two", None] * 500,
            "n": list(range(1500)),
            "lists": [[1, 2]] * 1500,
            "parts": [{"a": 1, "b": "x"}] * 1500,
            "map": pa.array([[("k", 1)]] * 1500, pa.map_(pa.string(), pa.int32())),
        }
    )
