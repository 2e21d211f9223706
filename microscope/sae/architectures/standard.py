"""Standard: ReLU with an L1 penalty (Bricken et al. 2023, transformer-circuits.pub/2023/monosemantic-features)."""

from __future__ import annotations

import torch
from torch import Tensor

from microscope.sae.architectures.penalised import PenalisedSae


class StandardSae(PenalisedSae):
    """Decoder rows have unit length, so the penalty is the plain sum of activations."""

    def rectify(self, pre: Tensor, latents: slice) -> Tensor:
        return pre.relu()

    def threshold_form(self) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ones(1), torch.zeros(1), torch.zeros(1)
