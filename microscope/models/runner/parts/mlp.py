"""MLPs of one block, composed as its family declares."""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

from microscope.models import declarations
from microscope.models.runner.parts.projections import Projection
from microscope.models.runner.patch import BlockPatch
from microscope.models.runner.product import Product, as_product
from microscope.models.runner.taps import patched


class ComposedMlp:
    """From the normed stream ``[batch, rows, d]`` to what the MLP adds to it."""

    def __init__(self, block: nn.Module, declared: declarations.Mlp) -> None:
        within = f"{declared.module}." if declared.module else ""
        self.inputs = Projection(block, [within + name for name in declared.inputs])
        self.output = Projection(block, [within + declared.output])
        self._gated = declared.gated
        self._activation = attrgetter(within + declared.activation)(
            block
        )  # the model's own: some have weights

    @property
    def products(self) -> Iterator[Product]:
        """What may be packed."""
        yield from self.inputs.products
        yield from self.output.products

    def __call__(self, hidden: Tensor, patch: BlockPatch | None) -> Tensor:
        inner = self.inputs(hidden, patch)
        if self._gated:
            gate, up = inner.chunk(2, -1)
            inner = self._activation(gate) * up
        else:
            inner = self._activation(inner)
        return self.output(inner, patch)


class OwnMlp:
    """The model's own module, as of experts: which of them compute a row is theirs to say."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        # Of shared experts; the others' weights are one tensor.
        self.products = tuple(as_product(m) for m in module.modules() if type(m) is nn.Linear)

    def __call__(self, hidden: Tensor, patch: BlockPatch | None) -> Tensor:
        if patch is None:
            return _first(self._module(hidden))
        # What it adds to the stream is changed where that is done for all blocks, so not by the module's taps.
        inside = BlockPatch(patch.deltas, sizes=patch.sizes)
        with patched(inside):
            out = self._module(hidden)
        patch.calls += inside.calls
        return _first(out)


def _first(out: Any) -> Tensor:
    """The stream's part of what a module returns."""
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def mlp_of(block: nn.Module, declared: declarations.Mlp) -> ComposedMlp | OwnMlp:
    """The MLP of a block: composed where it has the declared projections, its own module otherwise."""
    module = block.get_submodule(declared.module)
    if hasattr(module, declared.output):
        return ComposedMlp(block, declared)
    return OwnMlp(module)
