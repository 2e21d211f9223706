"""The same training batches for everybody."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch


def training_batches(rows: str, size: int) -> tuple[Iterator[torch.Tensor], torch.Tensor]:
    """Endless float32 batches ``[size, d]`` from a file of shuffled rows, and the rows' mean ``[d]``.

    Batches are made beforehand: gathering them is no part of the step.
    """
    x = torch.from_numpy(np.load(rows))
    generator = torch.Generator().manual_seed(0)
    batches = [x[torch.randint(len(x), (size,), generator=generator)] for _ in range(8)]
    return itertools.cycle(batches), x.mean(0)
