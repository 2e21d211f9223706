"""Gated: one half decides whether a latent is active, the other how much (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from microscope.sae.config import SaeConfig
from microscope.sae.loss import LossContext, StepLoss
from microscope.sae.penalty import PenalisedSae


class GatedSae(PenalisedSae):
    """``f = [π > 0] · relu(exp(r_mag) ⊙ (W_enc·u') + b_mag)`` with ``π = W_enc·u' + b_enc``; b_enc is the gate's bias."""

    architecture: ClassVar[str] = "gated"

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(config.n_latents))

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        magnitude = self.r_mag[latents].exp() * (pre - self.b_enc[latents]) + self.b_mag[latents]
        return torch.where(pre > 0, magnitude.relu(), 0.0)

    @torch.no_grad()
    def calibrate(self, u: Tensor) -> None:
        """Begin sparse: with every second gate open the penalty would first have to clear the field."""
        self.b_enc.sub_(self.starting_cut(u))

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """Fraction of variance unexplained + L1 of the gate + the gate's own reconstruction through a
        frozen decoder, plus AuxK."""
        gate = self.centred(u) @ self.W_enc.T + self.b_enc
        f = self.rectify(gate, slice(None))
        error = f @ self.W_dec + self.offset(u) - target
        total = context.variance(target)
        fvu = error.square().sum() / total
        open_gate = gate.relu()
        frozen = open_gate @ self.W_dec.detach() + self.offset(u).detach() - target
        penalty = open_gate.sum() / context.rows(u) / self.config.d_in**0.5
        loss = fvu + frozen.square().sum() / total + self.coefficient() * penalty
        loss = loss + self.auxiliary(u, -error, context)
        fired = (f > 0).sum(0).float()
        l0 = fired.sum() / context.rows(u)
        self.steer(context.team.sum(l0))
        return StepLoss(loss, fvu.detach(), l0, fired)
