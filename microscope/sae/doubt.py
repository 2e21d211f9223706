"""How far a product of numbers rounded to bfloat16 may be from the exact one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.product import Bfloat16Product

# bfloat16 has 8 significant bits: rounding moves a number by at most this share of the result.
HALF_ULP = 2.0**-8
# Matrices are looked at in pieces of this many rows, while those are in the cache.
_PIECE_ROWS = 512


class Doubt:
    """Bounds on ``|rough − exact|`` before the result's own rounding.

    With ``x̃ = x − δx`` and ``w̃ = w − δw`` rounded, ``x·w − x̃·w̃ = δx·w + x̃·δw``, which by Cauchy and Schwarz
    is at most ``‖δx‖·‖w‖ + ‖x̃‖·‖δw‖``. The norms are measured; the bound is about 0.4 of the one that
    assumes the worst rounding of every number. The sum itself is rounded d times in float32, the bias
    once in bfloat16.

    Args:
        x: ``[rows, d]``.
        weight: ``[latents, d]``.
        bias: ``[latents]``.
        rough: the product that was rounded.
    """

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor, rough: Bfloat16Product) -> None:
        rounding = x.shape[1] * 2.0**-23
        self._x, x_lost = _norms(x, x.bfloat16())
        self._weight, weight_lost = _norms(weight, rough.weight)
        self._x_lost = x_lost + rounding * self._x
        self._x = self._x + x_lost  # at least ‖x̃‖
        self._weight_lost = weight_lost
        self._bias_lost = (bias - rough.bias).abs()

    def per_row(self) -> Tensor:
        """The largest doubt in each row, ``[rows]``."""
        return self._x_lost * self._weight.max() + self._x * self._weight_lost.max() + self._bias_lost.max()

    def of_pairs(self, row: np.ndarray, latent: np.ndarray, value: np.ndarray) -> np.ndarray:
        """How far the exact value may be from each of these rounded ones, its own rounding included: ``[pairs]``."""
        x_lost, x = self._x_lost.numpy()[row], self._x.numpy()[row]
        weight, weight_lost = self._weight.numpy()[latent], self._weight_lost.numpy()[latent]
        doubt: np.ndarray = x_lost * weight + x * weight_lost + self._bias_lost.numpy()[latent]
        return doubt + HALF_ULP * np.abs(value)


@torch.no_grad()
def _norms(exact: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of rows, and of what rounding took from them: ``[rows]`` each."""
    step = _PIECE_ROWS if exact.device.type == "cpu" else max(1, len(exact))
    pieces = list(zip(exact.split(step), rounded.split(step), strict=True))
    norms = torch.cat([torch.linalg.vector_norm(e, dim=1) for e, _ in pieces])
    return norms, torch.cat(
        [torch.linalg.vector_norm(r.to(e.dtype, copy=True).sub_(e), dim=1) for e, r in pieces]
    )
