"""Norms of a model as single operations, where those compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from microscope.models.runner.tail import measured_gain

Norm = Callable[[Tensor], Tensor]
# How far two ways to round the same norm may be apart, relative to it.
_ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class RMSNorm:
    """Rows ``[…, d]`` over their root mean square, times ``gain`` ``[d]``, in the gain's precision."""

    def __init__(self, gain: Tensor, eps: float) -> None:
        self.gain, self._eps, self._shape = gain, eps, tuple(gain.shape)

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == self.gain.dtype:
            return F.rms_norm(x, self._shape, self.gain, self._eps)
        return F.rms_norm(x.to(self.gain.dtype), self._shape, self.gain, self._eps).to(x.dtype)


def norm_of(module: nn.Module) -> Norm:
    """A norm as one operation, if one is found that gives what the module gives; the module itself otherwise."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if isinstance(module, nn.LayerNorm) or not isinstance(weight, Tensor) or weight.dim() != 1:
        return module
    if not isinstance(eps, float) or weight.dtype not in _ROUNDING or weight.is_meta:
        return module
    trial = _trial(len(weight), weight)
    with torch.no_grad():
        right = module(trial).float()
        for gain in (weight.detach(), 1 + weight.detach().float()):
            norm = RMSNorm(gain, eps)
            off = (norm(trial).float() - right).norm(dim=-1) / right.norm(dim=-1)
            if bool((off <= _ROUNDING[weight.dtype]).all()):
                return norm
    return module


def own_norm(module: nn.Module) -> Norm:
    """A norm as the model computes it, rounding included."""
    return module


def gain_of(norm: Any, like: Tensor) -> Tensor:
    """Elementwise gain of a norm for rows like this one, ``[d]``."""
    if isinstance(norm, RMSNorm):
        return norm.gain
    if type(norm) is nn.LayerNorm:
        return norm.weight if norm.elementwise_affine else torch.ones_like(like)
    return measured_gain(norm, len(like), like)


def _trial(width: int, like: Tensor) -> Tensor:
    """Rows ``[2, width]``: one of usual size, and one so small that what is added to its square counts."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(width, generator=generator) + 0.5
    return torch.stack((row, row / 1000)).to(like)
