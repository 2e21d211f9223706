"""Encoding and decoding with exact sparse gradients, for autograd.

Gradients touch the winners only: that with respect to the activations, and those of both matrices, the
latter as sums over each latent's pairs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from microscope.sae.backends import LatentSums, Winners, backend_for


def firing_counts(winners: Winners, active: Tensor, latents: int) -> Tensor:
    """How often each latent was above zero, ``[latents]`` in float32."""
    counts = torch.zeros(latents, device=active.device)
    return counts.index_add_(0, winners.latent, (active > 0).float())


class _Term(NamedTuple):
    sums: LatentSums
    for_dec: Tensor
    error: Tensor
    for_enc: Tensor
    centred: Tensor


class LatentGradients:
    """Gradients of both matrices, kept as sums over winners until some latents' are asked for.

    A step asks for some latents at a time and uses them up while they are in the cache, so that
    the full matrices never exist.
    """

    def __init__(self) -> None:
        self._terms: list[_Term] = []

    def add(self, term: _Term) -> None:
        self._terms.append(term)

    def add_decoder(self, first: int, last: int, out: Tensor) -> None:
        """Add dL/dW_dec of latents ``first`` to ``last`` to ``out``, ``[last − first, d_out]``."""
        for term in self._terms:
            term.sums.add(term.for_dec, term.error, first, last, out)

    def add_encoder(self, first: int, last: int, out: Tensor) -> None:
        """Add dL/dW_enc of latents ``first`` to ``last`` to ``out``, ``[last − first, d_in]``."""
        for term in self._terms:
            term.sums.add(term.for_enc, term.centred, first, last, out)


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
            pre = backend_for(x).dots(centred, winners, w_enc) + b_enc[winners.latent]
        active = pre.relu()
        ctx.winners, ctx.sink = winners, sink
        ctx.save_for_backward(centred, w_enc, w_dec, active)
        ctx.mark_non_differentiable(active)
        return backend_for(x).decode_pairs(active, winners, w_dec), active

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _active: Tensor) -> tuple[Tensor | None, ...]:
        _, w_enc, w_dec, active = ctx.saved_tensors
        grad, backend = grad.contiguous(), backend_for(grad)
        gate = backend.dots(grad, ctx.winners, w_dec) * (active > 0)
        gradients = _through(ctx, grad, gate, active)
        g_x = backend.decode_pairs(gate, ctx.winners, w_enc) if ctx.needs_input_grad[0] else None
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
        error, gate = backend_for(target).fit(active, winners, w_dec, base, target)
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
    sums = backend_for(error).sums(winners, len(w_enc))
    g_bias, g_enc, g_dec = sums.vector(for_enc), None, None
    if ctx.sink is None:
        g_enc, g_dec = sums.matrix(for_enc, centred), sums.matrix(for_dec, error)
    else:
        ctx.sink.add(_Term(sums, for_dec, error, for_enc, centred))
    # b_pre reaches the output, negatively, through every encoder row that won
    g_pre = -(g_bias @ w_enc) if ctx.needs_input_grad[4] else None
    return g_enc, g_bias, g_dec, g_pre


def energy(x: Tensor) -> Tensor:
    """Σx² of ``[rows, d]``, row by row, so that it is accurate in one pass."""
    return torch.linalg.vector_norm(x, dim=1).square().sum()
