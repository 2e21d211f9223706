"""How far a product of numbers rounded to bfloat16 may be from the exact one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# bfloat16 has 8 significant bits: rounding moves a number by at most this share of the result.
HALF_ULP = 2.0**-8


class Rounded(NamedTuple):
    """Rows in bfloat16 ``[rows, d]``, their norms before, and those of what rounding took from them: ``[rows]``."""

    values: Tensor
    norm: Tensor
    lost: Tensor


@torch.no_grad()
def rounded(x: Tensor) -> Rounded:
    """Round float32 rows ``[rows, d]`` to bfloat16."""
    values = x.bfloat16()
    return Rounded(
        values, torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(values.float() - x, dim=1)
    )


class ErrorBound:
    """Bounds on ``|rough − exact|`` before the result's own rounding.

    With ``x̃ = x − δx`` and ``w̃ = w − δw`` rounded, ``x·w − x̃·w̃ = δx·w + x̃·δw``, which by Cauchy and Schwarz
    is at most ``‖δx‖·‖w‖ + ‖x̃‖·‖δw‖``. The norms are measured; the bound is about 0.4 of the one that
    assumes the worst rounding of every number. The sum itself is rounded d times in float32, the bias
    once in bfloat16.

    Args:
        weight: ``[latents, d]``, rounded.
        bias: ``[latents]``.

    Attributes:
        weight: ``‖w‖`` of each latent, ``[latents]``.
        weight_lost: ``‖δw‖``.
        bias_lost: what the bias lost.
    """

    def __init__(self, weight: Rounded, bias: Tensor) -> None:
        self.weight, self.weight_lost = weight.norm, weight.lost
        self.bias_lost = (bias.detach() - bias.detach().bfloat16()).abs()
        self._most = (self.weight.max(), self.weight_lost.max(), self.bias_lost.max())

    def of_rows(self, x: Rounded) -> tuple[Tensor, Tensor]:
        """What rows lost, the sum's own rounding included, and at least ``‖x̃‖``: ``[rows]`` each."""
        return x.lost + x.values.shape[1] * 2.0**-23 * x.norm, x.norm + x.lost

    def at_most(self, lost: Tensor, norm: Tensor) -> Tensor:
        """The largest bound in each of those rows, ``[rows]``."""
        weight, weight_lost, bias_lost = self._most
        return lost * weight + norm * weight_lost + bias_lost

    def of_pairs(self, lost: Tensor, norm: Tensor, latent: Tensor, value: Tensor) -> Tensor:
        """How far the exact value may be from each of these rounded ones, its own rounding included.

        ``lost`` and ``norm`` are those of the pairs' rows; all are ``[pairs]``.
        """
        bound = lost * self.weight[latent] + norm * self.weight_lost[latent] + self.bias_lost[latent]
        return bound + HALF_ULP * value.abs()
