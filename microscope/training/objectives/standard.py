"""Standard: an L1 penalty (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.architectures.standard import StandardSae
from microscope.training.objectives.base import LossContext, StepLoss
from microscope.training.objectives.penalised import PenalisedObjective


class StandardObjective(PenalisedObjective[StandardSae]):
    """Decoder rows have unit length, so the penalty is the plain sum of activations."""

    @torch.no_grad()
    def calibrate(self, u: Tensor) -> None:
        """Begin sparse: with every second latent active the penalty would first have to silence most of them."""
        self.sae.b_enc.sub_(self.starting_cut(u))

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """Fraction of variance unexplained + coefficient · mean Σf / √d, plus AuxK."""
        sae = self.sae
        f = (sae.centred(u) @ sae.W_enc.T + sae.b_enc).relu()
        error = f @ sae.W_dec + self.offset(u) - target
        fvu = error.square().sum() / context.variance(target)
        penalty = f.sum() / context.rows(u) / sae.config.d_in**0.5
        loss = fvu + self.coefficient() * penalty + self.auxiliary(u, -error, context)
        fired = (f > 0).sum(0).float()
        l0 = fired.sum() / context.rows(u)
        self.steer(context.group.sum(l0))
        return StepLoss(loss, fvu.detach(), l0, fired)
