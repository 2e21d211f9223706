"""Products with weights that never change, laid out for the processor when there is room."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import cache
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows ``[…, in]`` times a packed weight, plus a bias.
_Packed = Callable[[Tensor], Tensor]
Packer = Callable[[Tensor, Tensor | None], _Packed]
# Layouts are compared on this many rows, about what a toggle recomputes, and the best of so many times.
_TRIAL_ROWS, _TRIALS = 32, 5


class Product:
    """``x·Wᵀ + b`` of rows ``[…, in]`` with a weight ``[out, in]`` and a bias ``[out]`` or None.

    A CPU's matrix kernels read a weight in blocks of their own shape and rearrange it at every call. Packed,
    the weight is kept a second time in that shape: the same products, in bfloat16 bit for bit, in float32
    up to the order of summation, with less time per call, most of all for few rows.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight, self.bias = weight, bias
        self._packed: _Packed | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Product:
        # Not packed: a copy's weights may change.
        return Product(copy.deepcopy(self.weight, memo), copy.deepcopy(self.bias, memo))

    @property
    def nbytes(self) -> int:
        """What packing adds to memory."""
        return self.weight.nbytes

    def pack(self) -> int:
        """Keep the weight in the kernels' layout, too, where there are such kernels; returns the bytes added."""
        if self._packed is not None:
            return 0
        packer = _packer(self.weight)
        if packer is None:
            return 0
        self._packed = packer(self.weight.detach().contiguous(), self.bias)
        return self.nbytes

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None or (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        return self._packed(x)


def as_product(linear: nn.Linear) -> Product:
    """A product that the layer computes by from now on, as long as it keeps its weights."""
    made = getattr(linear, "_product", None)
    if isinstance(made, Product):  # another runner of the same model
        return made
    product = Product(linear.weight, linear.bias)
    linear._product, linear._plain_forward = product, linear.forward  # type: ignore[assignment]
    # A bound method, so that a copy of the model is bound to the copied layer.
    linear.forward = MethodType(_by_product, linear)  # type: ignore[method-assign]
    return product


def _by_product(linear: nn.Linear, x: Tensor) -> Tensor:
    product: Any = linear._product
    kept = linear.weight is product.weight and linear.bias is product.bias
    out: Tensor = product(x) if kept else linear._plain_forward(x)  # type: ignore[operator]
    return out


def packers(weight: Tensor) -> dict[str, Packer]:
    """The ways to pack weights like this one, by the library whose kernels they are for; none where those are missing."""
    if weight.device.type != "cpu":
        return {}
    ways: dict[str, Packer] = {}
    if weight.dtype in (torch.float32, torch.bfloat16) and _has(
        "mkldnn", "_linear_pointwise", "_reorder_linear_weight"
    ):
        ways["onednn"] = _onednn
    if weight.dtype == torch.float32 and _has("mkl", "_mkl_linear", "_mkl_reorder_linear_weight"):
        ways["mkl"] = _mkl
    return ways


def _packer(weight: Tensor) -> Packer | None:
    """The fastest of them."""
    ways = packers(weight)
    if len(ways) < 2:
        return next(iter(ways.values()), None)
    return ways["mkl" if _mkl_is_faster() else "onednn"]


def _has(library: str, *operations: str) -> bool:
    there = torch.backends.mkldnn.is_available() if library == "mkldnn" else torch.backends.mkl.is_available()
    return there and all(hasattr(getattr(torch.ops, library), name) for name in operations)


def _onednn(weight: Tensor, bias: Tensor | None) -> _Packed:
    # The number of rows is a hint: the layout serves any.
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 128)
    linear = torch.ops.mkldnn._linear_pointwise
    return lambda x: linear(x, packed, bias, "none", [], "")


def _mkl(weight: Tensor, bias: Tensor | None) -> _Packed:
    # Here, too, the layout serves any number of rows; told another number than there are, the operation
    # would fall back to the plain weight.
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, 128)
    linear = torch.ops.mkl._mkl_linear
    return lambda x: linear(x, packed, weight, bias, x.numel() // x.shape[-1])


@cache
def _mkl_is_faster() -> bool:
    """Which of two libraries multiplies few float32 rows faster differs from processor to processor: tried once."""
    weight = torch.ones(2048, 512)
    x = torch.ones(_TRIAL_ROWS, 512)
    with torch.no_grad():
        return _shortest(_mkl(weight, None), x) < _shortest(_onednn(weight, None), x)


def _shortest(product: _Packed, x: Tensor) -> float:
    product(x)
    times = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        product(x)
        times.append(time.perf_counter() - started)
    return min(times)
