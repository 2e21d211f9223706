"""Which queries and keys a block's attention scores are made of, followed from their product to the softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_MATMUL = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_ADDED_MATMUL = {torch.baddbmm, Tensor.baddbmm}
_TIMES = {
    torch.mul,
    Tensor.mul,
    Tensor.__mul__,
    Tensor.__rmul__,
    torch.multiply,
    Tensor.mul_,
    Tensor.__imul__,
}
_OVER = {torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide, Tensor.div_, Tensor.__itruediv__}
_TANH = {torch.tanh, Tensor.tanh, torch.nn.functional.tanh}
# These add what does not depend on the stream: a mask, or something by distance.
_PLUS: set[Callable[..., Any]] = {
    torch.add,
    Tensor.add,
    Tensor.__add__,
    Tensor.__radd__,
    Tensor.add_,
    Tensor.__iadd__,
}
_MASK: set[Callable[..., Any]] = {Tensor.masked_fill, torch.masked_fill, Tensor.masked_fill_, torch.where}
_MASK |= {torch.max, torch.maximum, Tensor.max, Tensor.maximum}
# What leaves scores as they are, or only in another shape.
_SHAPE: set[Callable[..., Any]] = {
    Tensor.view,
    Tensor.reshape,
    torch.reshape,
    Tensor.unflatten,
    Tensor.flatten,
}
_SHAPE |= {
    Tensor.to,
    Tensor.float,
    Tensor.type_as,
    Tensor.contiguous,
    torch.dropout,
    torch.nn.functional.dropout,
}
# What joins or shifts them in front of the softmax, as sinks do; scores stay those in front of it.
_BEHIND: set[Callable[..., Any]] = {torch.cat, torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__getitem__}


@dataclass(frozen=True)
class Made:
    """A tensor on its way to the softmax.

    Args:
        now: the tensor itself, kept alive so that its id stays its own.
        query, key: what was multiplied, ``[…, queries, head_dim]`` and ``[…, keys, head_dim]``.
        scale: factor between ``query·key`` and ``scores``.
        scores: in front of the softmax, or in front of the bound where there is one, without what was added behind
            it; detached.
        bounded: whether a bound (soft cap) was passed.
    """

    now: Tensor
    query: Tensor
    key: Tensor
    scale: float
    scores: Tensor
    bounded: bool = False


class Scores:
    """Follows products of queries and keys through the operations of a pass."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}

    def of(self, tensor: Tensor) -> Made | None:
        """How a tensor was made; None where something else was done to it on the way."""
        return self._made.get(id(tensor))

    def follow(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        """Take notice of an operation and its result."""
        if func in _MATMUL and len(args) == 2:
            self._product(out, args[0], args[1], 1.0)
        elif func in _ADDED_MATMUL:
            left, right = (*args[1:], *(kwargs[name] for name in ("batch1", "batch2") if name in kwargs))
            self._product(out, left, right, float(kwargs.get("alpha", 1.0)))
        elif self._made and isinstance(out, Tensor):
            known = self._first(args)
            made = None if known is None else self._next(known, func, args, out)
            if made is not None:
                self._made[id(out)] = made

    def _product(self, out: Tensor, left: Any, right: Any, scale: float) -> None:
        if isinstance(right, Tensor) and out.dim() in (3, 4) and right.dim() == out.dim():
            self._made[id(out)] = Made(out, left, right.transpose(-1, -2), scale, out.detach())

    def _first(self, args: tuple[Any, ...]) -> Made | None:
        """The scores among an operation's arguments."""
        for arg in args:
            for one in arg if isinstance(arg, list | tuple) else (arg,):
                found = self._made.get(id(one))
                if found is not None:
                    return found
        return None

    def _next(self, known: Made, func: Any, args: tuple[Any, ...], out: Tensor) -> Made | None:
        if func in _BEHIND:
            return replace(known, now=out)
        if func in _TANH:
            return replace(known, now=out, bounded=True)
        scores = known.scores if known.bounded else out.detach()
        if func in _TIMES or func in _OVER:
            by = args[1] if args[0] is known.now else args[0]
            if func in _TIMES and isinstance(by, Tensor) and bool(((by == 0) | (by == 1)).all()):
                return replace(known, now=out, scores=scores)  # a mask
            factor = _number(by)
            if factor is None or (func in _OVER and args[0] is not known.now):
                return None
            factor = 1 / factor if func in _OVER else factor
            scores = known.scores * factor if known.bounded else scores
            return replace(known, now=out, scale=known.scale * factor, scores=scores)
        if func in _SHAPE:
            return replace(known, now=out, scores=scores.reshape(out.shape))
        return replace(known, now=out, scores=scores) if func in _PLUS or func in _MASK else None


def _number(value: Any) -> float | None:
    """A factor that is one number for all scores."""
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None
