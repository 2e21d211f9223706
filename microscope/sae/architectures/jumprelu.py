"""JumpReLU: each latent has its own threshold (Rajamanoharan et al. 2024, arXiv 2407.14435)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from microscope.sae.architectures.penalised import PenalisedSae
from microscope.sae.config import SaeConfig

INITIAL_THRESHOLD = 0.1


class JumpReluSae(PenalisedSae):
    """``f = pre · [pre > θ]`` with one positive threshold per latent, kept as its logarithm in float32."""

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.log_threshold = nn.Parameter(torch.full((config.n_latents,), math.log(INITIAL_THRESHOLD)))

    @property
    def threshold(self) -> Tensor:
        """θ, ``[latents]``."""
        return self.log_threshold.exp()

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        return torch.where(pre > self.log_threshold[latents].exp(), pre, 0.0)

    def threshold_form(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones(1), torch.zeros(1), self.threshold
