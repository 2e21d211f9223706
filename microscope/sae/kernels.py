"""The exact sparse arithmetic of autoencoders of which few latents win.

A dense step costs about ten products of size ``rows × d × latents``; only the encoder's needs to see
all latents. Everything else touches the winners: decoding, the gradient with respect to the
activations, and both weight gradients, the latter from one sort of (latent, row) pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.sae.cpu import pairs
from microscope.sae.cpu.latents import ByLatent

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


def decode(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """``Σⱼ values[r, j] · weight[indices[r, j]]``: ``[rows, d]`` from ``[rows, k]`` and ``[latents, d]``."""
    return F.embedding_bag(indices, weight, per_sample_weights=values, mode="sum")


def decode_pairs(values: Tensor, winners: Winners, weight: Tensor) -> Tensor:
    """The same for a list of pairs: values ``[pairs]`` to ``[rows, d]``."""
    return F.embedding_bag(winners.latent, weight, winners.offsets, per_sample_weights=values, mode="sum")


def gather_dot(x: Tensor, winners: Winners, weight: Tensor) -> Tensor:
    """``x[row] · weight[latent]`` of every pair, ``[pairs]``, without materialising ``[pairs, d]``."""
    if x.device.type == "cpu":
        return pairs.dots(x, weight, winners.row, winners.latent)
    step = max(1, _GATHER_LIMIT // x.shape[1])
    parts = [
        torch.einsum("pd,pd->p", x[row], weight[latent])
        for row, latent in zip(winners.row.split(step), winners.latent.split(step), strict=True)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0)


def firing_counts(winners: Winners, active: Tensor, latents: int) -> Tensor:
    """How often each latent was above zero, ``[latents]`` in float32."""
    counts = torch.zeros(latents, device=active.device)
    return counts.index_add_(0, winners.latent, (active > 0).float())


class SparseGradients:
    """Gathers ``Σ coefficient · row`` per latent for several matrices from one sort of the winners."""

    def __init__(self, winners: Winners, latents: int) -> None:
        self._latent, self._order = torch.sort(winners.latent.int())
        self._row = winners.row.int()[self._order]
        # looked up rather than counted: counting would wait for the device
        bounds = torch.arange(latents + 1, device=self._latent.device, dtype=torch.int32)
        self._begins = torch.searchsorted(self._latent, bounds, out_int32=True)
        self._latents = latents

    def sorted(self, coefficients: Tensor) -> Tensor:
        """Coefficients ``[pairs]`` in the order of latents, as :meth:`matrix` takes them."""
        return coefficients[self._order]

    def matrix(self, coefficients: Tensor, rows: Tensor) -> Tensor:
        """``[latents, d]``: for each latent the sum of ``coefficients[pair] · rows[row]`` over its wins."""
        return F.embedding_bag(
            self._row, rows, self._begins[:-1], per_sample_weights=coefficients, mode="sum"
        )

    def vector(self, coefficients: Tensor) -> Tensor:
        """``[latents]``: for each latent the sum of its coefficients."""
        total = torch.zeros(self._latents, dtype=coefficients.dtype, device=coefficients.device)
        return total.index_add_(0, self._latent, coefficients)


class _Term(NamedTuple):
    by_latent: ByLatent
    for_dec: Tensor
    error: Tensor
    for_enc: Tensor
    centred: Tensor


class LatentGradients:
    """Gradients of both matrices on a CPU, kept as sums over winners until some latents' are asked for.

    A step asks for some latents at a time and uses them up while they are in the cache, so that
    the full matrices never exist.
    """

    def __init__(self) -> None:
        self._terms: list[_Term] = []

    def add(self, term: _Term) -> None:
        self._terms.append(term)

    def add_decoder(self, first: int, last: int, out: np.ndarray) -> None:
        """Add dL/dW_dec of latents ``first`` to ``last`` to ``out``, ``[last − first, d_out]``."""
        for term in self._terms:
            term.by_latent.add(term.for_dec, term.error, first, last, out)

    def add_encoder(self, first: int, last: int, out: np.ndarray) -> None:
        """Add dL/dW_enc of latents ``first`` to ``last`` to ``out``, ``[last − first, d_in]``."""
        for term in self._terms:
            term.by_latent.add(term.for_enc, term.centred, first, last, out)


class SparseAutoencode(torch.autograd.Function):
    """Encode and decode given winners, with exact sparse gradients.

    ``f[p] = relu((x[row] − b_pre)·W_enc[latent] + b_enc[latent])`` for every pair p and
    ``out[r] = Σ f[p]·W_dec[latent]`` over the pairs of row r. Gradients of W_enc, b_enc, W_dec, b_pre
    and, if asked, x, are those of dense autograd with the selection held fixed, as in every TopK
    implementation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_pre: Tensor | None,
        winners: Winners,
        pre: Tensor | None,
        sink: LatentGradients | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns ``out`` ``[rows, d_out]`` and the activations ``[pairs]``.

        ``pre`` are the winners' pre-activations ``[pairs]`` when the caller has them; else they are
        computed. A ``sink`` takes the gradients of both matrices, which then get none of their own.
        """
        centred = x if b_pre is None else x - b_pre
        if pre is None:
            pre = gather_dot(centred, winners, w_enc) + b_enc[winners.latent]
        active = pre.relu()
        ctx.winners, ctx.sink = winners, sink
        ctx.save_for_backward(centred, w_enc, w_dec, active)
        ctx.mark_non_differentiable(active)
        return decode_pairs(active, winners, w_dec), active

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _active: Tensor) -> tuple[Tensor | None, ...]:
        _, w_enc, w_dec, active = ctx.saved_tensors
        grad = grad.contiguous()
        gate = gather_dot(grad, ctx.winners, w_dec) * (active > 0)
        gradients = _through(ctx, grad, gate, active)
        g_x = decode_pairs(gate, ctx.winners, w_enc) if ctx.needs_input_grad[0] else None
        return g_x, *gradients, None, None, None


class SparseFit(torch.autograd.Function):
    """How much of a target the winners leave unexplained: :class:`SparseAutoencode` and its squared error in one.

    ``fvu = Σ‖Σ f[p]·W_dec[latent] + base − target‖² / total``. It goes over the rows as few times as
    possible; there is no gradient for x and the target.
    """

    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_pre: Tensor | None,
        base: Tensor,
        target: Tensor,
        total: Tensor,
        winners: Winners,
        pre: Tensor,
        sink: LatentGradients | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the fraction, the error ``[rows, d_out]`` and the activations ``[pairs]``.

        ``centred`` are the rows less ``b_pre``; ``base`` is the output without any latent, ``[d_out]`` or
        ``[rows, d_out]``; ``pre`` are the winners' pre-activations.
        """
        active = pre.relu()
        if target.device.type == "cpu":
            error, gate = pairs.fit(active, winners.latent, winners.offsets, w_dec, base, target)
        else:
            error = decode_pairs(active, winners, w_dec).add_(base).sub_(target)
            gate = gather_dot(error, winners, w_dec) * (active > 0)
        ctx.winners, ctx.sink, ctx.flat_base = winners, sink, base.dim() == 1
        ctx.save_for_backward(centred, w_enc, w_dec, active, error, gate, total)
        ctx.mark_non_differentiable(error, active)
        return energy(error) / total, error, active

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _error: Tensor, _active: Tensor) -> tuple[Tensor | None, ...]:
        active, error, gate, total = ctx.saved_tensors[3:]
        scale = 2 * grad / total
        gradients = _through(ctx, error, gate * scale, active * scale)
        g_base = (error.sum(0) if ctx.flat_base else error) * scale
        return None, *gradients, g_base, None, None, None, None, None


def _through(
    ctx: Any, error: Tensor, for_enc: Tensor, for_dec: Tensor
) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """Gradients of W_enc, b_enc, W_dec and b_pre.

    They are sums over pairs: of ``for_enc · centred`` for the encoder, ``for_dec · error`` for the decoder.
    """
    centred, w_enc = ctx.saved_tensors[:2]
    winners: Winners = ctx.winners
    if ctx.sink is None:
        sums = SparseGradients(winners, len(w_enc))
        sorted_enc = sums.sorted(for_enc)
        g_bias = sums.vector(sorted_enc)
        g_enc, g_dec = sums.matrix(sorted_enc, centred), sums.matrix(sums.sorted(for_dec), error)
    else:
        by_latent = ByLatent(winners.row, winners.latent, len(w_enc))
        ctx.sink.add(_Term(by_latent, for_dec, error, for_enc, centred))
        g_bias, g_enc, g_dec = by_latent.totals(for_enc), None, None
    # b_pre reaches the output, negatively, through every encoder row that won
    g_pre = -(g_bias @ w_enc) if ctx.needs_input_grad[4] else None
    return g_enc, g_bias, g_dec, g_pre


def energy(x: Tensor) -> Tensor:
    """Σx² of ``[rows, d]``, row by row, so that it is accurate in one pass."""
    return torch.linalg.vector_norm(x, dim=1).square().sum()
