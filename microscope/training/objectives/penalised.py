"""Sparsity by a penalty, steered to a wanted mean number of active latents."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from microscope.sae.architectures.penalised import PenalisedSae
from microscope.training.objectives.base import Objective

# Proportional and integral gain on log(L0/k); found on runs of a few hundred to a few thousand steps.
_PROPORTIONAL, _INTEGRAL = 1.0, 0.02
# A fresh autoencoder starts with this many times the wanted L0.
_HEAD_START = 4

P = TypeVar("P", bound=PenalisedSae)


class PenalisedObjective(Objective[P]):
    """Base of objectives whose L0 comes of a penalty.

    Which coefficient gives a wanted L0 is not known beforehand and changes while training, so a PI controller
    sets it: its logarithm is a multiple of log(L0/k) plus that multiple's running sum. The sum and
    the latest L0 are buffers of the SAE, so a checkpoint carries them.
    """

    def coefficient(self) -> Tensor:
        """The penalty's weight now."""
        return (self.sae.log_coefficient + _PROPORTIONAL * self.sae.log_excess).exp()

    @torch.no_grad()
    def steer(self, l0: Tensor) -> None:
        """Adjust the coefficient after a step whose mean L0 was ``l0``."""
        sae = self.sae
        sae.log_excess.copy_((l0.clamp_min(1e-3) / sae.config.k).log().clamp(-2, 2))
        sae.log_coefficient.add_(_INTEGRAL * sae.log_excess)

    @torch.no_grad()
    def starting_cut(self, u: Tensor) -> Tensor:
        """The pre-activation above which a few times k latents of a fresh autoencoder lie, per row on average."""
        sae = self.sae
        pre = sae.centred(u) @ sae.W_enc.T + sae.b_enc
        wanted = min(pre.numel(), _HEAD_START * sae.config.k * len(u))
        return pre.reshape(-1).topk(wanted).values[-1]
