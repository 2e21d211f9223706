"""Products with weights that never change, laid out for the processor when there is room."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Product:
    """``x·Wᵀ + b`` of rows ``[…, in]`` with a weight ``[out, in]`` and a bias ``[out]`` or None.

    A CPU's matrix kernels read a weight in blocks of their own shape and rearrange it at every call. Packed,
    the weight is kept a second time in that shape: the same products, in bfloat16 bit for bit, in float32
    up to the order of summation, with less time per call, most of all for few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """What packing adds to memory."""
        return self.weight.nbytes

    def pack(self) -> int:
        """Keep the weight in the kernels' layout, too, where there are such kernels; returns the bytes added."""
        if self._packed is not None or not can_pack(self.weight):
            return 0
        # The number of rows is a hint: the layout serves any.
        self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().contiguous(), 128)
        return self.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return out


def can_pack(weight: Tensor) -> bool:
    """Whether the kernels that read packed weights are there for this one."""
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )
