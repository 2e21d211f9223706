"""Which features point the same way, by their decoder and by their encoder directions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK_BYTES = 64 * 2**20


@torch.inference_mode()
def nearest_rows(matrix: Tensor, count: int, *, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each of ``features`` the ``count`` other rows of ``[latents, d]`` with the largest cosine.

    Yields:
        Indices and cosines, ``[count]`` each, from the nearest on. A block of the similarity matrix is
        in memory at a time.
    """
    unit = F.normalize(matrix.detach().float(), dim=1)
    count = min(count, len(unit) - 1)
    for some in features.to(unit.device).split(max(1, _BLOCK_BYTES // (4 * len(unit)))):
        cosine = unit[some] @ unit.T
        cosine[torch.arange(len(some), device=unit.device), some] = -2.0  # itself
        values, indices = cosine.topk(count, dim=1)
        yield from zip(indices.cpu(), values.cpu(), strict=True)
