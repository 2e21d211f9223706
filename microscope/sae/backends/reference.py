"""The sparse arithmetic in plain torch: on any device, and what every other backend is compared with.

The product that a search looks at may be computed in bfloat16. Rounding moves an entry by a bounded
amount, so the entries that can possibly win are known; float32 then decides among those. The winners
are those of a float32 product, up to float32's own rounding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.sae.backends.base import Backend, LatentSums, Pairs, Winners
from microscope.sae.backends.error_bound import HALF_ULP, ErrorBound, rounded

# How many times k latents are rescored after a search in bfloat16.
_WIDER = 2
# Gathered rows are a buffer of at most this many numbers.
_GATHER_LIMIT = 2**25


class ReferenceBackend(Backend):
    def top_k(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = pre.topk(k, dim=1, sorted=False)
        return values, indices

    @torch.no_grad()
    def winners_of_rows(
        self, centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool
    ) -> tuple[Tensor, Tensor]:
        if not bfloat16:
            return self.top_k(torch.addmm(bias, centred, weight.T), k)
        wide = min(_WIDER * k, len(weight))
        found, bound, lost, norm = self._rough(centred, weight, bias)
        rough, indices = found.topk(wide, dim=1, sorted=False)
        exact = self.dots(centred, Winners.of_indices(indices), weight).view(indices.shape) + bias[indices]
        values, best = exact.topk(k, dim=1, sorted=False)
        indices = indices.gather(1, best)
        if wide < len(weight):  # rows in which others could win are done anew
            outside = rough.float().amin(1)
            limit = outside + HALF_ULP * outside.abs() + bound.at_most(lost, norm)
            again = (~(values.amin(1) >= limit)).nonzero()[:, 0]
            if len(again):
                values[again], indices[again] = self.top_k(torch.addmm(bias, centred[again], weight.T), k)
        return values, indices

    @torch.no_grad()
    def winners_of_batch(
        self, centred: Tensor, weight: Tensor, bias: Tensor, budget: int, *, bfloat16: bool
    ) -> Pairs:
        if not bfloat16:
            return _largest(torch.addmm(bias, centred, weight.T), budget)
        found, bound, lost, norm = self._rough(centred, weight, bias)
        wide = min(_WIDER * budget, found.numel())
        row, latent, rough = _largest(found, wide)
        value = self.dots(centred, Winners.of_pairs(row, latent, len(centred)), weight) + bias[latent]
        lowest, outside = value.topk(budget).values[-1], rough.min().float()
        limit = outside + HALF_ULP * outside.abs() + bound.at_most(lost, norm).max()
        if wide == found.numel() or bool(lowest >= limit):
            return Pairs(row, latent, value)
        return self.winners_of_batch(centred, weight, bias, budget, bfloat16=False)

    def _rough(
        self, centred: Tensor, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, ErrorBound, Tensor, Tensor]:
        """The product in bfloat16, how far it may be off, and what rounding did to its rows."""
        rounded_weight, x = rounded(weight.detach()), rounded(centred)
        bound = ErrorBound(rounded_weight, bias)
        return F.linear(x.values, rounded_weight.values, bias.bfloat16()), bound, *bound.of_rows(x)

    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")

    def decode_pairs(self, values: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        return F.embedding_bag(winners.latent, weight, winners.offsets, per_sample_weights=values, mode="sum")

    def dots(self, x: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        step = max(1, _GATHER_LIMIT // x.shape[1])
        parts = [
            torch.einsum("pd,pd->p", x[row], weight[latent])
            for row, latent in zip(winners.row.split(step), winners.latent.split(step), strict=True)
        ]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def fit(
        self, active: Tensor, winners: Winners, weight: Tensor, base: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        error = self.decode_pairs(active, winners, weight).add_(base).sub_(target)
        return error, self.dots(error, winners, weight) * (active > 0)

    def sums(self, winners: Winners, latents: int) -> LatentSums:
        latent, order = torch.sort(winners.latent.int())
        # looked up rather than counted: counting would wait for the device
        bounds = torch.arange(latents + 1, device=latent.device, dtype=torch.int32)
        begins = torch.searchsorted(latent, bounds, out_int32=True)
        return SortedSums(winners.latent, begins, order, winners.row.int()[order])


class SortedSums(LatentSums):
    """Sums over pairs in the order of their latents.

    Args:
        latent: of each pair, ``[pairs]``.
        begins: where each latent's pairs begin, and at last their number: int32 ``[latents + 1]``.
        order: the pairs by latent, ``[pairs]``.
        row: their rows in that order, int32 ``[pairs]``.
    """

    def __init__(self, latent: Tensor, begins: Tensor, order: Tensor, row: Tensor) -> None:
        self.latent, self.begins, self.order, self.row = latent, begins, order, row

    def vector(self, coefficients: Tensor) -> Tensor:
        total = coefficients.new_zeros(len(self.begins) - 1)
        return total.index_add_(0, self.latent, coefficients)

    def matrix(self, coefficients: Tensor, rows: Tensor) -> Tensor:
        return F.embedding_bag(
            self.row, rows, self.begins[:-1], per_sample_weights=coefficients[self.order], mode="sum"
        )

    def add(self, coefficients: Tensor, rows: Tensor, first: int, last: int, out: Tensor) -> None:
        out += self.matrix(coefficients, rows)[first:last]


def _largest(pre: Tensor, budget: int) -> Pairs:
    """The ``budget`` largest of a matrix."""
    best = pre.reshape(-1).topk(budget, sorted=False)
    flat, order = best.indices.sort()
    return Pairs(flat // pre.shape[1], flat % pre.shape[1], best.values[order])
