"""Architectures whose sparsity comes of a penalty."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from microscope.sae.base import IndependentLatents
from microscope.sae.config import SaeConfig


class PenalisedSae(IndependentLatents):
    """Base of architectures whose mean L0 a penalty was steered to.

    ``log_coefficient`` and ``log_excess`` are what the steering of training had come to (see
    :class:`microscope.training.objectives.penalised.PenalisedObjective`); the function does not depend on them.
    """

    log_coefficient: Tensor
    log_excess: Tensor

    def __init__(self, config: SaeConfig) -> None:
        super().__init__(config)
        self.register_buffer("log_coefficient", torch.tensor(math.log(1e-3)))
        self.register_buffer("log_excess", torch.zeros(()))
