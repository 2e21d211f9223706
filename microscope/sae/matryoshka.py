"""Matryoshka BatchTopK: every prefix of the latents must reconstruct by itself (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from microscope.sae.batchtopk import BatchTopKSae
from microscope.sae.config import SaeConfig
from microscope.sae.kernels import SparseAutoencode, Winners, firing_counts
from microscope.sae.loss import LossContext, StepLoss

# Prefixes as shares of the width, when none are given (the sizes of the paper's and SAELens's examples).
_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


class MatryoshkaSae(BatchTopKSae):
    """Winners are chosen once; each prefix reconstructs with those of them that it contains.

    The loss is the mean over prefixes of the fraction of variance unexplained. Inference uses all
    latents with the running threshold.
    """

    architecture: ClassVar[str] = "matryoshka"

    def __init__(self, config: SaeConfig) -> None:
        if not config.groups:
            config.groups = tuple(sorted({max(1, round(s * config.n_latents)) for s in _SHARES}))
        super().__init__(config)

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        winners, pre = self.select(self.centred(u), context)
        total = context.variance(target)
        out = self.offset(u).expand_as(target)
        losses = []
        fired = torch.zeros(self.config.n_latents, device=u.device)
        first = 0
        for last in self.config.groups:
            mine = ((winners.latent >= first) & (winners.latent < last)).nonzero()[:, 0]
            part = Winners.of_pairs(winners.row[mine], winners.latent[mine], len(u))
            added, active = SparseAutoencode.apply(
                u, self.W_enc, self.b_enc, self.W_dec, self.pre_bias, part, pre[mine], context.sink
            )
            out = out + added
            losses.append((out - target).square().sum() / total)
            fired += firing_counts(part, active, self.config.n_latents)
            first = last
        loss = torch.stack(losses).mean() + self.auxiliary(u, (target - out).detach(), context)
        return StepLoss(loss, losses[-1].detach(), fired.sum() / context.rows(u), fired)
