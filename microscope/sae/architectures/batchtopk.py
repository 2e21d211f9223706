"""BatchTopK: k winners per token on average, chosen over the whole batch (Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.base import IndependentLatents
from microscope.sae.config import SaeConfig


class BatchTopKSae(IndependentLatents):
    """Trained with a budget of k·rows winners per batch; used with the threshold that came of it.

    ``threshold`` (one number, float32) is the running mean of the smallest winning pre-activation,
    so that inference on a token does not depend on the tokens beside it.
    """

    threshold: Tensor
    threshold_weight: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))
        # Σ of the weights in the running mean: corrects its start from zero, and makes a resumed run exact.
        self.register_buffer("threshold_weight", torch.zeros(()))

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        return torch.where(pre > self.cut, pre, 0.0).relu()

    def threshold_form(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones(1), torch.zeros(1), self.cut

    @property
    def cut(self) -> Tensor:
        """The threshold, unbiased."""
        return self.threshold / self.threshold_weight.clamp_min(1e-8)
