"""The sparse arithmetic in plain torch: what every backend does, and what other ones are compared with.

The product that a search looks at may be computed in bfloat16. Rounding moves an entry by a bounded
amount, so the entries that can possibly win are known; float32 then decides among those. The winners
are those of a float32 product, up to float32's own rounding.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.sae.backends.error_bound import HALF_ULP, ErrorBound, rounded

# Compiled searches are used from this many rows on: the first call takes seconds where none is cached.
MANY = 1024
# How many times k latents are rescored after a search in bfloat16.
_WIDER = 2
# Gathered rows are a buffer of at most this many numbers.
_GATHER_LIMIT = 2**25


class Winners(NamedTuple):
    """Which latents are active on which rows, as a list of (row, latent) pairs ordered by row.

    ``latent`` and ``row`` are ``[pairs]``; ``offsets`` ``[rows]`` says where each row's pairs begin.
    """

    latent: Tensor
    row: Tensor
    offsets: Tensor

    @classmethod
    def of_indices(cls, indices: Tensor) -> Winners:
        """Winners of a rectangular selection ``[rows, k]``."""
        rows, k = indices.shape
        row = torch.arange(rows, device=indices.device).repeat_interleave(k)
        offsets = torch.arange(0, rows * k, k, device=indices.device)
        return cls(indices.reshape(-1), row, offsets)

    @classmethod
    def of_pairs(cls, row: Tensor, latent: Tensor, rows: int) -> Winners:
        """Winners from pairs already ordered by row."""
        return cls(latent, row, torch.searchsorted(row, torch.arange(rows, device=row.device)))


class Pairs(NamedTuple):
    """Entries of a matrix ``[rows, latents]``, ordered by row: each tensor is ``[pairs]``."""

    row: Tensor
    latent: Tensor
    value: Tensor


class Backend:
    """The arithmetic of autoencoders of which few latents win, exact up to the rounding of float32.

    A dense training step costs about ten products of size ``rows × d × latents``; only the encoder's has to
    see all latents. Everything else touches the winners. Gradients are recorded by :meth:`decode` alone.
    This class computes on any device; one for a device overrides what it does faster there.
    """

    # Whether gradients of the matrices are best summed some latents at a time, while those are in the cache.
    piecewise_gradients: ClassVar[bool] = False

    def top_k(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the k largest entries per row, ``[rows, k]``, in no particular order."""
        values, indices = pre.topk(k, dim=1, sorted=False)
        return values, indices

    @torch.no_grad()
    def winners_of_rows(
        self, centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool
    ) -> tuple[Tensor, Tensor]:
        """The k largest of ``centred·weightᵀ + bias`` per row.

        Args:
            centred: ``[rows, d]`` in float32 (or float64 without ``bfloat16``), contiguous.
            weight: ``[latents, d]``.
            bias: ``[latents]``.
            k: how many per row.
            bfloat16: search in bfloat16, decide in float32.

        Returns:
            Pre-activations and latents, ``[rows, k]``, in no particular order.
        """
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
        """Entries of ``centred·weightᵀ + bias`` among which are the ``budget`` largest; arguments as above."""
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
        """``Σⱼ values[r, j] · weight[indices[r, j]]``: ``[rows, d]`` from ``[rows, k]`` and ``[latents, d]``."""
        return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")

    def decode_pairs(self, values: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        """The same for a list of pairs: values ``[pairs]`` to ``[rows, d]``."""
        return F.embedding_bag(winners.latent, weight, winners.offsets, per_sample_weights=values, mode="sum")

    def dots(self, x: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        """``x[row]·weight[latent]`` of every pair, ``[pairs]``, from ``[rows, d]`` and ``[latents, d]``."""
        step = max(1, _GATHER_LIMIT // x.shape[1])
        parts = [
            torch.einsum("pd,pd->p", x[row], weight[latent])
            for row, latent in zip(winners.row.split(step), winners.latent.split(step), strict=True)
        ]
        return torch.cat(parts) if parts else x.new_zeros(0)

    def fit(
        self, active: Tensor, winners: Winners, weight: Tensor, base: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct rows from their pairs, and send the error back to the pairs.

        Args:
            active: activations ``[pairs]``.
            winners: the pairs.
            weight: ``[latents, d]``.
            base: what is added to every row, ``[d]`` or ``[rows, d]``.
            target: ``[rows, d]``.

        Returns:
            ``error = Σ active·weight[latent] + base − target`` of each row, and ``error[row]·weight[latent]``
            of each pair that is active, 0 of the others.
        """
        error = self.decode_pairs(active, winners, weight).add_(base).sub_(target)
        return error, self.dots(error, winners, weight) * (active > 0)

    def sums(self, winners: Winners, latents: int) -> LatentSums:
        """Sums over the pairs of each of so many latents."""
        latent, order = torch.sort(winners.latent.int())
        # not by bincount, which would wait for the device
        bounds = torch.arange(latents + 1, device=latent.device, dtype=torch.int32)
        begins = torch.searchsorted(latent, bounds, out_int32=True)
        return LatentSums(winners.latent, begins, order, winners.row.int()[order])


class LatentSums:
    """Sums over each latent's pairs. Coefficients are ``[pairs]``, in the order of the winners.

    Args:
        latent: of each pair, ``[pairs]``.
        begins: where each latent's pairs begin, and at last their number: int32 ``[latents + 1]``.
        order: the pairs by latent, ``[pairs]``.
        row: their rows in that order, int32 ``[pairs]``.
    """

    def __init__(self, latent: Tensor, begins: Tensor, order: Tensor, row: Tensor) -> None:
        self.latent, self.begins, self.order, self.row = latent, begins, order, row

    def vector(self, coefficients: Tensor) -> Tensor:
        """For each latent the sum of its coefficients, ``[latents]``."""
        total = coefficients.new_zeros(len(self.begins) - 1)
        return total.index_add_(0, self.latent, coefficients)

    def matrix(self, coefficients: Tensor, rows: Tensor) -> Tensor:
        """For each latent the sum of ``coefficients[pair] · rows[row]``: ``[latents, d]`` from ``[rows, d]``."""
        return F.embedding_bag(
            self.row, rows, self.begins[:-1], per_sample_weights=coefficients[self.order], mode="sum"
        )

    def add(self, coefficients: Tensor, rows: Tensor, first: int, last: int, out: Tensor) -> None:
        """Add those rows of :meth:`matrix` that belong to latents ``first`` to ``last`` to ``out``, in place."""
        out += self.matrix(coefficients, rows)[first:last]


def _largest(pre: Tensor, budget: int) -> Pairs:
    """The ``budget`` largest of a matrix."""
    best = pre.reshape(-1).topk(budget, sorted=False)
    flat, order = best.indices.sort()
    return Pairs(flat // pre.shape[1], flat % pre.shape[1], best.values[order])
