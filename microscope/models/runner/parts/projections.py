"""Linear maps of one input, computed as one product where their weights allow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models.runner.patch import BlockPatch
from microscope.models.runner.product import Product


class Projection:
    """Modules of a block that read the same rows; their outputs stand side by side, ``[…, Σ out]``.

    Several plain linear layers become one product: the fused weight takes the place of theirs, which become
    views of it, so that no memory is doubled and the model computes what it did. Rounded weights, which
    cannot be fused, are computed by their modules.

    Args:
        block: the block.
        paths: the modules' paths within it.
    """

    def __init__(self, block: nn.Module, paths: Sequence[str]) -> None:
        modules = [block.get_submodule(path) for path in paths]
        self.paths = tuple(paths)
        self.widths = tuple(_width(module) for module in modules)
        self.product = _product(modules)
        self._compute = self.product or _side_by_side(modules)

    def __call__(self, x: Tensor, patch: BlockPatch | None = None) -> Tensor:
        y = self._compute(x)
        if patch is None:
            return y
        if len(self.paths) == 1:
            return patch.changed(self.paths[0], x, y)
        extras = [patch.added(path, x) for path in self.paths]
        if all(extra is None for extra in extras):
            return y
        columns = [
            part if extra is None else part + extra.to(part.dtype)
            for part, extra in zip(y.split(self.widths, -1), extras, strict=True)
        ]
        return torch.cat(columns, -1)

    @property
    def products(self) -> Iterator[Product]:
        """What may be packed."""
        if self.product is not None:
            yield self.product


def _product(modules: Sequence[Any]) -> Product | None:
    if len(modules) == 1 and isinstance(modules[0], Conv1D):
        return Product(modules[0].weight.t(), modules[0].bias)
    # Rounded weights are integers, of classes that compute with them.
    if not all(isinstance(m, nn.Linear) and m.weight.is_floating_point() for m in modules):
        return None
    if len(modules) == 1:
        return Product(modules[0].weight, modules[0].bias)
    weight = _fused([module.weight for module in modules])
    row = 0
    for module in modules:
        rows = module.weight.shape[0]
        module.weight = nn.Parameter(weight[row : row + rows], requires_grad=False)
        row += rows
    if all(module.bias is None for module in modules):
        return Product(weight)
    biases = [weight.new_zeros(m.weight.shape[0]) if m.bias is None else m.bias.detach() for m in modules]
    return Product(weight, torch.cat(biases))


def _fused(weights: Sequence[Tensor]) -> Tensor:
    """Weights one below the other; the storage that holds them so already is used again."""
    first, rows = weights[0].detach(), sum(len(weight) for weight in weights)
    end = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != end or not weight.is_contiguous():
            return torch.cat([weight.detach() for weight in weights])
        end += weight.nbytes
    if first.untyped_storage().nbytes() < (first.storage_offset() * first.itemsize) + rows * first[0].nbytes:
        return torch.cat([weight.detach() for weight in weights])
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))


def _side_by_side(modules: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    if len(modules) == 1:
        only: Callable[[Tensor], Tensor] = modules[0]
        return only
    return lambda x: torch.cat([module(x) for module in modules], -1)


def _width(module: Any) -> int:
    """Length of a module's output rows."""
    return int(module.weight.shape[1] if isinstance(module, Conv1D) else module.out_features)
