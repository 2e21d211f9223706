"""TopK: the fraction of variance unexplained with the k winners of each token (Gao et al. 2024, arXiv 2406.04093)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from microscope.sae.architectures.batchtopk import BatchTopKSae
from microscope.sae.architectures.topk import TopKSae
from microscope.sae.backends import Winners, backend_for
from microscope.training.objectives.base import LossContext, Objective, StepLoss
from microscope.training.objectives.sparse import SparseFit, firing_counts


class TopKObjective(Objective[TopKSae | BatchTopKSae]):
    # Measured, not derived (`python -m benchmarks quality`): rows of unit length turn too slowly at the
    # encoder's rate, and long memories of early, large gradients slow the few hundred steps of a short run.
    rate_factors: ClassVar[dict[str, float]] = {"W_dec": 4.0}
    betas: ClassVar[tuple[float, float]] = (0.7, 0.97)
    in_pieces: ClassVar[bool] = True
    dense: ClassVar[bool] = False

    def loss(self, u: Tensor, target: Tensor, context: LossContext) -> StepLoss:
        """The batch's fraction of variance unexplained, plus AuxK."""
        with torch.no_grad():
            centred = self.sae.centred(u).contiguous()
            winners, pre = self.select(centred, context)
        total = context.variance(target)
        fvu, error, active = SparseFit.apply(
            centred, *self.weights, self.offset(u), target, total, winners, pre, context.sink
        )
        loss = fvu + self.auxiliary(u, -error, context) if context.wants_auxiliary else fvu
        fired = firing_counts(winners, active, self.sae.config.n_latents)
        return StepLoss(loss, fvu.detach(), fired.sum() / context.rows(u), fired)

    def select(self, centred: Tensor, context: LossContext) -> tuple[Winners, Tensor]:
        """Winners of scaled rows less the pre-bias, and their pre-activations ``[pairs]``."""
        sae = self.sae
        values, indices = backend_for(centred).winners_of_rows(
            centred, sae.W_enc, sae.b_enc, sae.config.k, bfloat16=context.bfloat16
        )
        return Winners.of_indices(indices), values.reshape(-1)
