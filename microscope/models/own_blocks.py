"""A model's own blocks, called one by one with the arguments its own forward pass would hand them.

Masks, rotary tables, per-layer inputs and whatever else a model gives its blocks besides the residual stream
is not built here: the model's forward pass runs with blocks that only note their arguments. So nothing about
a family needs to be known, and what a model does differently at some length is done here, too.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.cache_utils import Cache

from microscope.models.stream import map_first, stream_of


class _AllNoted(Exception):
    """The last block has been reached, and nothing behind it is wanted."""


@dataclass(frozen=True)
class Call:
    """Arguments of one block: its stream ``[batch, rows, d]``, and the others as they were given."""

    layer: int
    x: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Tell the stream from the rest."""
        x = stream_of(args, kwargs)
        return (
            cls(layer, x, args[1:], kwargs)
            if args
            else cls(layer, x, (), {k: v for k, v in kwargs.items() if v is not x})
        )


@dataclass
class _Notes:
    """What a pass with stand-ins sees, and what the last block returns; None ends the pass there."""

    like: list[Any]
    calls: list[Call] = field(default_factory=list)
    injected: Tensor | None = None


_noting: ContextVar[_Notes | None] = ContextVar("noting_arguments", default=None)


@contextmanager
def _noted(notes: _Notes) -> Iterator[None]:
    token = _noting.set(notes)
    try:
        yield
    finally:
        _noting.reset(token)


class OwnBlocks:
    """The blocks of a model. From now on each notes its arguments instead of running while a pass asks for that.

    Args:
        model: a causal language model.
        blocks: its list of blocks.
    """

    def __init__(self, model: Any, blocks: Any) -> None:
        self._model, self.config, self.blocks = model, model.config, blocks
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = next((n for n in ("cache", "past_key_values") if n in parameters), None)
        # What blocks return besides the stream, as seen in a pass of the model; set by trace().
        self._like: list[Any] = [None] * len(blocks)
        for layer, block in enumerate(blocks):
            if not hasattr(block, "_noting_layer"):
                block._noting_layer, block._own_forward = layer, block.forward
                # A bound method, so that a copy of the model is bound to the copied block.
                block.forward = MethodType(_forward, block)

    def __len__(self) -> int:
        return len(self.blocks)

    @torch.no_grad()
    def trace(self, tokens: Tensor, cache: Cache | None = None) -> tuple[list[Call], list[Any], Tensor]:
        """Run the model whole on token ids ``[batch, rows]``: every block's arguments and output, and the logits."""
        calls: list[Call] = []
        outputs: list[Any] = []

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls.append(Call.of(int(module._noting_layer), args, kwargs))  # type: ignore[arg-type]
            outputs.append(output)

        handles = [block.register_forward_hook(hook, with_kwargs=True) for block in self.blocks]
        try:
            logits: Tensor = self._model(input_ids=tokens, **self._cache_options(cache)).logits
        finally:
            for handle in handles:
                handle.remove()
        for call, output in zip(calls, outputs, strict=True):
            self._like[call.layer] = (
                map_first(output, _dropped) if isinstance(output, (tuple, list)) else None
            )
        return calls, outputs, logits

    @torch.no_grad()
    def note(self, tokens: Tensor, cache: Cache | None) -> list[Call]:
        """The arguments that the model hands each block for token ids ``[batch, rows]`` behind what a cache holds."""
        notes = _Notes(self._like)
        with _noted(notes), suppress(_AllNoted):
            self._model(input_ids=tokens, **self._cache_options(cache))
        return notes.calls

    def run(self, call: Call, x: Tensor, *, weights: Mapping[str, Tensor] | None = None) -> Any:
        """A block's output, as it returns it, for a stream ``[batch, rows, d]`` and noted arguments.

        ``weights`` stand in for parameters of the block by their names.
        """
        block = self.blocks[call.layer]
        if weights:
            return functional_call(block, dict(weights), (x, *call.args), call.kwargs)
        return block(x, *call.args, **call.kwargs)

    def behind(self, x: Tensor, *, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits ``[batch, rows, vocabulary]`` that the model makes of its last block's output ``[batch, rows, d]``.

        Differentiable. ``weights`` stand in for parameters of the model by their names.
        """
        # The tokens do not matter: what blocks would make of them is replaced.
        tokens = torch.ones(x.shape[:2], dtype=torch.long, device=x.device)
        options = {"input_ids": tokens, **self._cache_options(None)}
        with _noted(_Notes(self._like, injected=x)):
            out = (
                functional_call(self._model, dict(weights), (), options)
                if weights
                else self._model(**options)
            )
        logits: Tensor = out.logits
        return logits

    def _cache_options(self, cache: Cache | None) -> dict[str, Any]:
        if cache is None or self._cache_name is None:
            return {"use_cache": False}
        return {"use_cache": True, self._cache_name: cache}


def _dropped(x: Tensor) -> Tensor:
    """What stands for a stream that is not kept."""
    return x.new_empty(0)


def _forward(block: Any, *args: Any, **kwargs: Any) -> Any:
    notes = _noting.get()
    if notes is None:
        return block._own_forward(*args, **kwargs)
    call = Call.of(block._noting_layer, args, kwargs)
    notes.calls.append(call)
    x = call.x
    if call.layer == len(notes.like) - 1:
        if notes.injected is None:
            raise _AllNoted
        x = notes.injected
    like = notes.like[call.layer]
    return x if like is None else map_first(like, lambda _: x)
