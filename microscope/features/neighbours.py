"""Which features point the same way, by their decoder and by their encoder directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.features.accumulator import Accumulator
from microscope.params.features import Neighbour

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


class Neighbours(Accumulator):
    def results(self) -> Iterator[dict[str, Any]]:
        sae = self.context.sae
        for decoder, encoder in zip(self._nearest(sae.W_dec), self._nearest(sae.W_enc), strict=True):
            yield {"decoder_neighbours": decoder, "encoder_neighbours": encoder}

    def _nearest(self, matrix: Tensor) -> Iterator[list[Neighbour]]:
        features = torch.from_numpy(self.context.features)
        for indices, cosines in nearest_rows(matrix, self.context.params.neighbours, features=features):
            yield [
                Neighbour(index=j, cosine=round(c, 4))
                for j, c in zip(indices.tolist(), cosines.tolist(), strict=True)
            ]


class Directions(Accumulator):
    """The cosine is 0 for transcoders, whose rows live in two spaces."""

    @torch.inference_mode()
    def results(self) -> Iterator[dict[str, Any]]:
        sae, features = self.context.sae, self.context.features.tolist()
        norm = (sae.W_dec.norm(dim=1) / sae.config.output_scale).tolist()
        cosine = [0.0] * len(norm)
        if not sae.config.is_transcoder:
            cosine = torch.cosine_similarity(sae.W_enc, sae.W_dec, dim=1).tolist()
        for i in features:
            yield {"decoder_norm": norm[i], "encoder_decoder_cosine": cosine[i]}
