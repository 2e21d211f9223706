"""Gated: the gate is trained by a reconstruction of its own (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.architectures.gated import GatedSae
from microscope.training.objectives.base import LossContext, StepLoss
from microscope.training.objectives.penalised import PenalisedObjective


class GatedObjective(PenalisedObjective[GatedSae]):
    @torch.no_grad()
    def calibrate(self, u: Tensor) -> None:
        """Begin sparse: with every second gate open the penalty would first have to close most of them."""
        self.sae.b_enc.sub_(self.starting_cut(u))

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """Fraction of variance unexplained + L1 of the gate + the gate's own reconstruction through a
        frozen decoder, plus AuxK."""
        sae = self.sae
        gate = sae.centred(u) @ sae.W_enc.T + sae.b_enc
        f = sae.rectify(gate, slice(None))
        error = f @ sae.W_dec + self.offset(u) - target
        total = context.variance(target)
        fvu = error.square().sum() / total
        open_gate = gate.relu()
        frozen = open_gate @ sae.W_dec.detach() + self.offset(u).detach() - target
        penalty = open_gate.sum() / context.rows(u) / sae.config.d_in**0.5
        loss = fvu + frozen.square().sum() / total + self.coefficient() * penalty
        loss = loss + self.auxiliary(u, -error, context)
        fired = (f > 0).sum(0).float()
        l0 = fired.sum() / context.rows(u)
        self.steer(context.group.sum(l0))
        return StepLoss(loss, fvu.detach(), l0, fired)
