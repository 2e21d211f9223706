"""TopK: the k largest pre-activations of a token, rectified (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from microscope.hardware import has_fast_bfloat16
from microscope.sae.base import Codes, SparseAutoencoder
from microscope.sae.kernels import SparseFit, Winners, firing_counts
from microscope.sae.loss import LossContext, StepLoss
from microscope.sae.selection import MANY, top_k, winners_of_rows

# Latents that :meth:`TopKSae.feature` computes first; twice as many each time after that.
_FIRST_LOOK = 512


class TopKSae(SparseAutoencoder):
    architecture: ClassVar[str] = "topk"
    # Measured, not derived (`python -m benchmarks quality`): rows of unit length turn too slowly at the
    # encoder's rate, and long memories of early, large gradients slow the few hundred steps of a short run.
    rate_factors: ClassVar[dict[str, float]] = {"W_dec": 4.0}
    betas: ClassVar[tuple[float, float]] = (0.7, 0.97)
    in_pieces: ClassVar[bool] = True

    def encode(self, x: Tensor) -> Codes:
        """Sparse activations of raw rows ``[rows, d_in]``; many without all their pre-activations at once."""
        wants_gradient = torch.is_grad_enabled() and (x.requires_grad or self.W_enc.requires_grad)
        if len(x) < MANY or wants_gradient:
            return super().encode(x)
        fast = self.W_enc.dtype == torch.float32 and has_fast_bfloat16(x.device)
        centred = self.centred(self.scaled(x))
        values, indices = winners_of_rows(centred, self.W_enc, self.b_enc, self.config.k, bfloat16=fast)
        return Codes(values.relu(), indices)

    def activate(self, pre: Tensor) -> Codes:
        values, indices = top_k(pre, self.config.k)
        return Codes(values.relu(), indices)

    def feature(self, x: Tensor, index: int) -> Tensor:
        """Also in rows where it loses: it is beaten as soon as k others are seen to be larger."""
        centred = self.centred(self.scaled(x))
        value = self.pre_activation(centred, index).relu()
        larger = torch.zeros_like(value, dtype=torch.long)
        start, size = 0, _FIRST_LOOK
        while start < self.config.n_latents:
            rows = ((value > 0) & (larger < self.config.k)).nonzero()[:, 0]
            if not len(rows):
                break
            end = min(start + size, self.config.n_latents)
            pre = torch.addmm(self.b_enc[start:end], centred[rows], self.W_enc[start:end].T)
            if start <= index < end:
                pre[:, index - start] = -torch.inf  # itself
            larger[rows] += (pre > value[rows, None]).sum(1)
            start, size = end, 2 * size
        return torch.where(larger < self.config.k, value, 0.0)

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """The batch's fraction of variance unexplained, plus AuxK."""
        with torch.no_grad():
            centred = self.centred(u)
            winners, pre = self.select(centred, context)
        weights = (self.W_enc, self.b_enc, self.W_dec, self.pre_bias)
        total = context.variance(target)
        fvu, error, active = SparseFit.apply(
            centred, *weights, self.offset(u), target, total, winners, pre, context.sink
        )
        loss = fvu + self.auxiliary(u, -error, context) if context.wants_auxiliary else fvu
        fired = firing_counts(winners, active, self.config.n_latents)
        return StepLoss(loss, fvu.detach(), fired.sum() / context.rows(u), fired)

    def select(self, centred: Tensor, context: LossContext) -> tuple[Winners, Tensor]:
        """Winners of scaled rows less the pre-bias, and their pre-activations ``[pairs]``."""
        values, indices = winners_of_rows(
            centred, self.W_enc, self.b_enc, self.config.k, bfloat16=context.bfloat16
        )
        return Winners.of_indices(indices), values.reshape(-1)
