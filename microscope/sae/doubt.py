"""How far a product of numbers rounded to bfloat16 may be from the exact one."""

from __future__ import annotations

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
        weight: ``[latents, d]``.
        bias: ``[latents]``.
        rough: the product with them that is rounded.

    Attributes:
        weight: ``‖w‖`` of each latent, ``[latents]``.
        weight_lost: ``‖δw‖``.
        bias_lost: what the bias lost.
    """

    def __init__(self, weight: Tensor, bias: Tensor, rough: Bfloat16Product) -> None:
        self.weight, self.weight_lost = _norms(weight.detach(), rough.weight)
        self.bias_lost = (bias.detach() - rough.bias).abs()
        self._most = (self.weight.max(), self.weight_lost.max(), self.bias_lost.max())

    def of_rows(self, x: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
        """What rows ``[rows, d]`` lost, the sum's own rounding included, and at least ``‖x̃‖``: ``[rows]`` each."""
        norm, lost = _norms(x, rounded)
        return lost + x.shape[1] * 2.0**-23 * norm, norm + lost

    def at_most(self, lost: Tensor, norm: Tensor) -> Tensor:
        """The largest doubt in each of those rows, ``[rows]``."""
        weight, weight_lost, bias_lost = self._most
        return lost * weight + norm * weight_lost + bias_lost

    def of_pairs(self, lost: Tensor, norm: Tensor, latent: Tensor, value: Tensor) -> Tensor:
        """How far the exact value may be from each of these rounded ones, its own rounding included.

        ``lost`` and ``norm`` are those of the pairs' rows; all are ``[pairs]``.
        """
        doubt = lost * self.weight[latent] + norm * self.weight_lost[latent] + self.bias_lost[latent]
        return doubt + HALF_ULP * value.abs()


@torch.no_grad()
def _norms(exact: Tensor, rounded: Tensor) -> tuple[Tensor, Tensor]:
    """The norms of rows, and of what rounding took from them: ``[rows]`` each."""
    step = _PIECE_ROWS if exact.device.type == "cpu" else max(1, len(exact))
    pieces = list(zip(exact.split(step), rounded.split(step), strict=True))
    norms = torch.cat([torch.linalg.vector_norm(e, dim=1) for e, _ in pieces])
    return norms, torch.cat(
        [torch.linalg.vector_norm(r.to(e.dtype, copy=True).sub_(e), dim=1) for e, r in pieces]
    )
