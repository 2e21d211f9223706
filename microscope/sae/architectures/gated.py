"""Gated: one half decides whether a latent is active, the other how much (Rajamanoharan et al. 2024, arXiv 2404.16014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from microscope.sae.architectures.penalised import PenalisedSae
from microscope.sae.config import SaeConfig


class GatedSae(PenalisedSae):
    """``f = [π > 0] · relu(exp(r_mag) ⊙ (W_enc·u') + b_mag)`` with ``π = W_enc·u' + b_enc``; b_enc is the gate's bias."""

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.r_mag = nn.Parameter(torch.zeros(config.n_latents))
        self.b_mag = nn.Parameter(torch.zeros(config.n_latents))

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        magnitude = self.r_mag[latents].exp() * (pre - self.b_enc[latents]) + self.b_mag[latents]
        return torch.where(pre > 0, magnitude.relu(), 0.0)

    def threshold_form(self) -> tuple[Tensor, Tensor, Tensor]:
        m = self.r_mag.exp()
        return m, self.b_mag - m * self.b_enc, torch.zeros(1)
