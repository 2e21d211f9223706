"""BatchTopK: k winners per token on average, chosen over the whole batch (Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from microscope.sae.base import Codes, IndependentLatents, SparseAutoencoder
from microscope.sae.config import SaeConfig
from microscope.sae.kernels import Winners
from microscope.sae.loss import LossContext
from microscope.sae.selection import winners_of_batch
from microscope.sae.topk import TopKSae

# Weight of the past in the running threshold: about the last hundred batches count.
_MEMORY = 0.99


class BatchTopKSae(IndependentLatents, TopKSae):
    """Trained with a budget of k·rows winners per batch; used with the threshold that came of it.

    ``threshold`` (one number, float32) is the running mean of the smallest winning pre-activation,
    so that inference on a token does not depend on the tokens beside it.
    """

    architecture: ClassVar[str] = "batchtopk"
    in_pieces: ClassVar[bool] = False  # the whole batch's product is one
    threshold: Tensor
    threshold_weight: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))
        # Σ of the weights in the running mean: corrects its start from zero, and makes a resumed run exact.
        self.register_buffer("threshold_weight", torch.zeros(()))

    def encode(self, x: Tensor) -> Codes:
        return SparseAutoencoder.encode(self, x)  # by the threshold, not by rank

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        return torch.where(pre > self.cut, pre, 0.0).relu()

    @property
    def cut(self) -> Tensor:
        """The threshold, unbiased."""
        return self.threshold / self.threshold_weight.clamp_min(1e-8)

    @torch.no_grad()
    def select(self, centred: Tensor, context: LossContext) -> tuple[Winners, Tensor]:
        winners, values, lowest = winners_of_batch(
            centred,
            self.W_enc,
            self.b_enc,
            self.config.k,
            bfloat16=context.bfloat16,
            team=context.team,
        )
        self.threshold.mul_(_MEMORY).add_(lowest.float().clamp_min(0) * (1 - _MEMORY))
        self.threshold_weight.mul_(_MEMORY).add_(1 - _MEMORY)
        return winners, values
