"""Training fed from the store: how much of the time it waits for rows."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import torch

from benchmarks.child import Measured, Turn
from benchmarks.contestants.train_ours import as_trained, fresh_run
from microscope.activations import Recording, ShuffledRows
from microscope.training.objectives import variance


def training(
    *, recording: str, layer: int, width: int, k: int, batch: int, steps: int, buffer: int, stored: bool
) -> Turn:
    """Steps on batches read from the store, or with ``stored`` false on one batch in memory."""
    opened = Recording(recording)
    run = fresh_run(opened, layer=layer, width=width, k=k, batch=batch, bfloat16=True)
    scale = run.sae.config.scale
    stream = ShuffledRows(opened, run.source, seed=0, buffer_bytes=buffer).batches(batch)
    source: Iterator[torch.Tensor] = stream if stored else itertools.repeat(next(stream))
    number = itertools.count()

    def turn() -> Measured:
        waited = 0.0
        started = time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            rows = next(source)
            waited += time.perf_counter() - asked
            u = rows.float().mul_(scale)
            run.step(next(number), u, u, variance(u))
        spent = time.perf_counter() - started
        return Measured(spent, steps * batch, {"waiting, % of the time": 100 * waited / spent})

    return as_trained(turn)
