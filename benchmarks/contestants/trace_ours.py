"""Our recorder, from text to Parquet."""

from __future__ import annotations

import tempfile
import time

from benchmarks.child import Measured, Turn
from microscope.activations import record
from microscope.models import load_model
from microscope.params import TraceParams


def recording(
    *,
    model: str,
    text: str,
    layers: list[int],
    contexts: int,
    context_length: int,
    batch_tokens: int,
    processes: int,
    folder: str,
) -> Turn:
    """Rounds of whole recordings: text read, tokenised, run, written; only loading the model is left out."""
    loaded = load_model(model, dtype="bfloat16", device="cpu")

    def turn() -> Measured:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            params = TraceParams(
                model=model,
                out=f"{place}/recording",
                layers=tuple(layers),
                text=(text,),
                tokens=contexts * context_length,
                context_length=context_length,
                tokens_per_document=2 * context_length,
                held_out=0.2,
                batch_tokens=batch_tokens,
                processes=processes,
            )
            started = time.perf_counter()
            manifest = record(params, loaded=loaded)
            spent = time.perf_counter() - started
        return Measured(spent, manifest.train.rows + manifest.held_out.rows)

    return turn
