"""Matryoshka BatchTopK: every prefix of the latents must reconstruct by itself (Bussmann et al. 2025, arXiv 2503.17547)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.backends import Winners
from microscope.training.objectives.base import LossContext, StepLoss
from microscope.training.objectives.batchtopk import BatchTopKObjective
from microscope.training.objectives.sparse import SparseAutoencode, firing_counts


class MatryoshkaObjective(BatchTopKObjective):
    """Winners are chosen once; each prefix reconstructs with those of them that it contains.

    The loss is the mean over prefixes of the fraction of variance unexplained.
    """

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        sae = self.sae
        with torch.no_grad():
            winners, pre = self.select(sae.centred(u).contiguous(), context)
        total = context.variance(target)
        out = self.offset(u).expand_as(target)
        losses = []
        fired = torch.zeros(sae.config.n_latents, device=u.device)
        first = 0
        for last in sae.config.groups:
            mine = ((winners.latent >= first) & (winners.latent < last)).nonzero()[:, 0]
            part = Winners.of_pairs(winners.row[mine], winners.latent[mine], len(u))
            added, active = SparseAutoencode.apply(u, *self.weights, part, pre[mine], context.sink)
            out = out + added
            losses.append((out - target).square().sum() / total)
            fired += firing_counts(part, active, sae.config.n_latents)
            first = last
        loss = torch.stack(losses).mean() + self.auxiliary(u, (target - out).detach(), context)
        return StepLoss(loss, losses[-1].detach(), fired.sum() / context.rows(u), fired)
