"""Permanent taps on a model's own blocks, through which one call's patch changes what its modules compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models.families import Family
from microscope.models.runner.patch import BlockPatch

# The patch of the block that is running now; None otherwise, and then the taps do nothing.
_running: ContextVar[BlockPatch | None] = ContextVar("running_patch", default=None)


@contextmanager
def patched(patch: BlockPatch | None) -> Iterator[None]:
    """Let the taps of this thread's calls obey a patch."""
    token = _running.set(patch)
    try:
        yield
    finally:
        _running.reset(token)


def install_taps(model: Any, blocks: Any, family: Family) -> None:
    """Give the blocks' modules their permanent taps, once per model; whose edits run is decided per call."""
    if getattr(model, "_has_patch_taps", False):
        return
    model._has_patch_taps = True
    for layer, block in enumerate(blocks):
        for path, module in block.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)):
                module.register_forward_hook(_delta_tap(path))
        for path in family.parts_of(layer).writers:
            block.get_submodule(path).register_forward_hook(_written_tap)


def _delta_tap(path: str) -> Any:
    def tap(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        patch = _running.get()
        return None if patch is None else patch.changed(path, inputs[0], output)

    return tap


def _written_tap(_module: nn.Module, _inputs: object, output: Any) -> Any:
    patch = _running.get()
    if patch is None:
        return None
    if isinstance(output, tuple):
        return (patch.written(output[0]), *output[1:])
    return patch.written(output)
