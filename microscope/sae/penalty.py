"""Sparsity by a penalty, steered to a wanted mean number of active latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microscope.sae.base import IndependentLatents
from microscope.sae.config import SaeConfig

# Proportional and integral gain on log(L0/k); found on runs of a few hundred to a few thousand steps.
_PROPORTIONAL, _INTEGRAL = 1.0, 0.02
# A fresh autoencoder starts with this many times the wanted L0.
_HEAD_START = 4


class PenalisedSae(IndependentLatents):
    """Base of architectures whose L0 comes of a penalty.

    Nobody knows the coefficient that gives a wanted L0, and it drifts while training; so it is
    controlled: its logarithm is a multiple of log(L0/k) plus that multiple's running sum. The sum and
    the latest L0 are buffers, so a checkpoint carries them.
    """

    log_coefficient: Tensor
    log_excess: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("log_coefficient", torch.tensor(math.log(1e-3)))
        self.register_buffer("log_excess", torch.zeros(()))

    def coefficient(self) -> Tensor:
        """The penalty's weight now."""
        return (self.log_coefficient + _PROPORTIONAL * self.log_excess).exp()

    @torch.no_grad()
    def steer(self, l0: Tensor) -> None:
        """Adjust the coefficient after a step whose mean L0 was ``l0``."""
        self.log_excess.copy_((l0.clamp_min(1e-3) / self.config.k).log().clamp(-2, 2))
        self.log_coefficient.add_(_INTEGRAL * self.log_excess)

    @torch.no_grad()
    def starting_cut(self, u: Tensor) -> Tensor:
        """The pre-activation above which a few times k latents of a fresh autoencoder lie, per row on average."""
        pre = self.centred(u) @ self.W_enc.T + self.b_enc
        wanted = min(pre.numel(), _HEAD_START * self.config.k * len(u))
        return pre.reshape(-1).topk(wanted).values[-1]
