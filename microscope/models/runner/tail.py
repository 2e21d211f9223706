"""From the last block's output to logits: the model's own way, and as final norm times head where that is the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from microscope.models.own_blocks import OwnBlocks
from microscope.models.runner.base import with_deltas
from microscope.models.runner.patch import Delta


class Tail:
    """What a model does behind its last block.

    Args:
        model: a causal language model.
        own: its blocks, which have been traced.
        head: its unembedding module.
        x: outputs of the last block ``[1, rows, d]`` of some text, to try things on.

    Attributes:
        norm: the module between the last block and the head; None when the head reads the stream itself.
    """

    def __init__(self, model: Any, own: OwnBlocks, head: Any, x: Tensor) -> None:
        self._own, self._head, self._d = own, head, x.shape[-1]
        read: list[Tensor] = []
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []

        def watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen.append((module, args[0], output))

        self.norm: nn.Module | None = None
        self._direct = False  # whether logits are the head's output for the normed stream, and nothing else
        inside = {id(module) for block in own.blocks for module in block.modules()}
        handles = [m.register_forward_hook(watch) for m in model.modules() if id(m) not in inside]
        handles.append(head.register_forward_pre_hook(lambda _module, args: read.append(args[0])))
        try:
            logits = own.behind(x)
        finally:
            for handle in handles:
                handle.remove()
        self.norm = next((m for m, i, o in seen if _same(i, x) and _same(o, read[-1])), None)
        if self.norm is None and not _same(read[-1], x):
            return  # something else stands in front of the head
        self._direct = _same(head(self.normalise(x)).double(), logits.double())

    def __call__(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        """Logits ``[…, vocabulary]`` of the last block's output ``[…, d]``, with changes of the head's weight."""
        if self._direct:
            normed = self.normalise(x)
            return with_deltas(normed, self._head(normed), deltas)
        rows = x.reshape(1, -1, x.shape[-1]) if x.dim() < 3 else x
        handle = self._head.register_forward_hook(_adds(deltas)) if deltas else None
        try:
            logits = self._own.behind(rows)
        finally:
            if handle is not None:
                handle.remove()
        return logits.reshape(*x.shape[:-1], logits.shape[-1])

    def normalise(self, x: Tensor) -> Tensor:
        """What the head reads, ``[…, d]``."""
        out: Tensor = x if self.norm is None else self.norm(x)
        return out

    @property
    def gain(self) -> Tensor:
        """Elementwise gain of the final norm ``[d]``, measured: what it does to two vectors, whatever its formula."""
        if self.norm is None:
            return torch.ones(self._d, device=self._head.weight.device)
        return measured_gain(self.norm, self._d, self._head.weight)


def measured_gain(norm: Any, d: int, like: Tensor) -> Tensor:
    """Elementwise gain ``[d]`` in float32 of a norm, with or without centring, bias or an offset of its weight.

    A norm maps x to ``gain·(x − c·mean(x))/size(x) + bias``; x and −x have the same size, so half the difference
    of their outputs is free of the bias.
    """
    x = torch.randn(d, generator=torch.Generator().manual_seed(0)).to(like)
    x = x - x.mean()
    unit = x.float() / x.float().square().mean().sqrt()
    out = (norm(x).float() - norm(-x).float()) / 2
    return out / unit


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.equal(a, b))


def _adds(deltas: Sequence[Delta]) -> Any:
    def hook(_module: object, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return with_deltas(inputs[0], output, deltas)

    return hook
