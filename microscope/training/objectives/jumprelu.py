"""JumpReLU: thresholds are trained through straight-through estimators (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from microscope.sae.architectures.jumprelu import INITIAL_THRESHOLD, JumpReluSae
from microscope.sae.backends import Winners, backend_for
from microscope.training.objectives.base import LossContext, StepLoss
from microscope.training.objectives.penalised import PenalisedObjective
from microscope.training.objectives.sparse import firing_counts

# Width of the rectangle that stands in for the step's derivative, in units of the scaled activations.
BANDWIDTH = 0.1


class JumpReluObjective(PenalisedObjective[JumpReluSae]):
    # Adam moves a logarithm by one learning rate a step: too slow to follow the growing encoder rows.
    rate_factors: ClassVar[dict[str, float]] = {"log_threshold": 10.0}

    @torch.no_grad()
    def calibrate(self, u: Tensor) -> None:
        """Begin with thresholds that a few times k latents pass."""
        self.sae.log_threshold.fill_(float(self.starting_cut(u).clamp_min(INITIAL_THRESHOLD).log()))

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """Fraction of variance unexplained + coefficient · L0 / d, plus AuxK."""
        out, l0, fired = _JumpRelu.apply(u, *self.weights, self.sae.log_threshold, context.rows(u))
        error = out + self.offset(u) - target
        fvu = error.square().sum() / context.variance(target)
        penalty = l0 / self.sae.config.d_in
        loss = fvu + self.coefficient() * penalty + self.auxiliary(u, -error, context)
        self.steer(context.group.sum(l0))
        return StepLoss(loss, fvu.detach(), l0.detach(), fired)


class _JumpRelu(torch.autograd.Function):
    """Encode with thresholds and decode; sparse both ways.

    The step's derivative with respect to θ is replaced by ``−(1/ε)·[|pre−θ| < ε/2]``, so a threshold
    learns from latents just above and just below it: those pairs are kept beside the active ones.
    """

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_pre: Tensor | None,
        log_threshold: Tensor,
        rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output ``[rows, d_out]``, the share in the mean L0 of a batch of ``rows``, and the
        firing counts ``[latents]``."""
        centred = u if b_pre is None else u - b_pre
        pre = torch.addmm(b_enc, centred, w_enc.T)
        threshold = log_threshold.exp()
        row, latent = (pre > threshold - BANDWIDTH / 2).nonzero(as_tuple=True)
        near = Winners.of_pairs(row, latent, len(u))
        value, cut = pre[row, latent], threshold[latent]
        active = torch.where(value > cut, value, 0.0)
        fired = firing_counts(near, active, len(b_enc))
        ctx.near, ctx.rows = near, rows
        ctx.save_for_backward(centred, w_enc, w_dec, active, value, cut)
        ctx.mark_non_differentiable(fired)
        return backend_for(u).decode_pairs(active, near, w_dec), fired.sum() / rows, fired

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_l0: Tensor, _fired: Tensor) -> tuple[Tensor | None, ...]:
        centred, w_enc, w_dec, active, value, cut = ctx.saved_tensors
        near: Winners = ctx.near
        grad, backend = grad.contiguous(), backend_for(grad)
        through = backend.dots(grad, near, w_dec)  # dL/df of every near pair
        gate = through * (active > 0)
        band = ((value - cut).abs() < BANDWIDTH / 2).to(value.dtype) / BANDWIDTH
        # df/dθ = −θ·band and dL0/dθ = −band; dθ/dlogθ = θ
        for_threshold = -band * cut * (cut * through + grad_l0 / ctx.rows)
        sums = backend.sums(near, len(w_enc))
        g_bias = sums.vector(gate)
        g_pre = -(g_bias @ w_enc) if ctx.needs_input_grad[4] else None
        g_u = backend.decode_pairs(gate, near, w_enc) if ctx.needs_input_grad[0] else None
        return (
            g_u,
            sums.matrix(gate, centred),
            g_bias,
            sums.matrix(active, grad),
            g_pre,
            sums.vector(for_threshold),
            None,
        )
