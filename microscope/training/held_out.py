"""How well an SAE does on documents it was not trained on, measured once when training ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from microscope.activations import Recording, SiteRecord
from microscope.sae import SparseAutoencoder


@torch.no_grad()
def held_out_fvu(
    sae: SparseAutoencoder,
    recording: Recording,
    source: SiteRecord,
    target: SiteRecord,
    *,
    device: torch.device,
    max_rows: int,
) -> float | None:
    """Σ‖y−ŷ‖² / Σ‖y−μ‖² over ordinary held-out tokens, in float64; None when there are none.

    y is what the SAE is to produce: its input, or a transcoder's target. μ is the mean of these tokens.
    """
    error, squares, count = 0.0, 0.0, 0
    total = torch.zeros(target.width, dtype=torch.float64)
    for x, y in _ordinary_rows(recording, source, target, max_rows):
        output = sae(x.to(device)).double().cpu()
        wanted = y.double()
        error += float((output - wanted).square().sum())
        squares += float(wanted.square().sum())
        total += wanted.sum(0)
        count += len(wanted)
    if not count:
        return None
    spread = squares - float(total.square().sum()) / count
    return error / spread if spread > 0 else None


def _ordinary_rows(
    recording: Recording, source: SiteRecord, target: SiteRecord, max_rows: int
) -> Iterator[tuple[Tensor, Tensor]]:
    inputs = recording.chunks("held_out", source, max_rows=max_rows)
    outputs = recording.chunks("held_out", target, max_rows=max_rows) if target is not source else None
    for chunk in inputs:
        keep = recording.keep_mask(source, chunk.flags, chunk.norm)
        wanted = chunk
        if outputs is not None:
            wanted = next(outputs)
            keep &= recording.keep_mask(target, wanted.flags, wanted.norm)
        x = torch.from_numpy(np.ascontiguousarray(chunk.values[keep]))
        yield x, x if wanted is chunk else torch.from_numpy(np.ascontiguousarray(wanted.values[keep]))
