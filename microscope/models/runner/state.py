"""Caches a model's own blocks see for one call: keys and values that are joined, or a recurrent state."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
)

from microscope.models.runner.base import GrowingKeyValue, KeyValue, Past


class History:
    """Inputs ``[batch, positions, d]`` of a block, kept where it has no cache: it runs on all of them again."""

    def __init__(self, x: Tensor, *, owned: bool = False) -> None:
        self.x, self._owned = x, owned

    def upto(self, position: int) -> History:
        """The part before a position (a view)."""
        return History(self.x[:, :position])

    def compact(self) -> History:
        """Itself: it is the stream, which is kept anyway."""
        return self

    def growing(self) -> History:
        """A copy that one writer takes further in place."""
        return History(self.x, owned=True)

    def followed_by(self, new: History, start: int) -> History:
        """These, of all positions before ``start``, then new ones."""
        x = torch.cat((self.x[:, :start], new.x), 1)
        if self._owned:
            self.x = x
        return History(x)

    def tensors(self) -> tuple[Tensor]:
        """Everything held."""
        return (self.x,)

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.x.nbytes


class RecurrentState:
    """What a recurrent or hybrid block carries from one row to the next; it cannot be cut at a position.

    Args:
        layer: the model's own cache of the block. Written to only where ``owned``.
    """

    def __init__(self, layer: Any, *, owned: bool = False) -> None:
        self.layer, self.owned = layer, owned

    def for_writing(self) -> Any:
        """The cache of the block for one call, which goes on from it."""
        return self.layer if self.owned else copy.deepcopy(self.layer)

    def growing(self) -> RecurrentState:
        """A copy that one writer takes further in place."""
        return RecurrentState(copy.deepcopy(self.layer), owned=True)

    def compact(self) -> RecurrentState:
        """Itself: it shares storage with nothing."""
        return self

    def followed_by(self, new: RecurrentState, start: int) -> RecurrentState:
        """The newer state: it holds all that came before."""
        return new

    def tensors(self) -> Iterator[Tensor]:
        """Everything held."""
        for value in vars(self.layer).values():
            for part in value.values() if isinstance(value, dict) else (value,):
                if isinstance(part, Tensor):
                    yield part

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(t.nbytes for t in self.tensors())


class _Joining(DynamicLayer):
    """Joins given keys and values with new ones and remembers the new; it never drops any, whatever the window.

    Masks made for it therefore cover all positions, and leave out those outside a window.
    """

    def __init__(self, past: Past | None, start: int) -> None:
        super().__init__()
        self._past, self._start = past, start
        self.new: KeyValue | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        self.new = KeyValue(key, value)
        return self.new if self._past is None else self._past.followed_by(self.new, self._start)

    def get_seq_length(self) -> int:
        return self._start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._start + query_length, 0


class Caches:
    """Makes the cache of one call of a model, or of one of its blocks.

    Args:
        config: the model's configuration, which says what kind of cache each block needs.
        n_layers: number of blocks.
    """

    def __init__(self, config: PretrainedConfig, n_layers: int) -> None:
        layers = DynamicCache(config=config).layers
        self._kinds = [_unwindowed(layer) for layer in layers] or [DynamicLayer()] * n_layers

    @property
    def cuttable(self) -> bool:
        """Whether every block's state is keys and values by position, or nothing."""
        return all(type(kind) in (DynamicLayer, DummyLayer) for kind in self._kinds)

    def begin(self, start: int) -> Cache:
        """A cache that says it holds ``start`` positions, for noting what the model hands its blocks."""
        return Cache(layers=[self._placeholder(kind, start) for kind in self._kinds])

    def put(self, cache: Cache, layer: int, past: Any, start: int) -> None:
        """Make a block's part of the cache that of one call, behind ``past``."""
        if layer >= len(self._kinds):
            return
        if type(self._kinds[layer]) is DynamicLayer:
            cache.layers[layer] = _Joining(past if start else None, start)
        else:
            goes_on = start and isinstance(past, RecurrentState)
            cache.layers[layer] = past.for_writing() if goes_on else copy.deepcopy(self._kinds[layer])

    def take(self, cache: Cache, layer: int) -> Any:
        """What the block has left there: new keys and values, or its state."""
        held = cache.layers[layer] if layer < len(self._kinds) else None
        if isinstance(held, _Joining):
            return held.new or _nothing()
        return _nothing() if held is None or isinstance(held, DummyLayer) else RecurrentState(held)

    def _placeholder(self, kind: Any, start: int) -> Any:
        if type(kind) is DynamicLayer:
            return _Joining(None, start)
        layer = copy.deepcopy(kind)
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.has_previous_state = dict.fromkeys(layer.has_previous_state, start > 0)
        if isinstance(layer, CacheLayerMixin):
            holds: Any = layer  # of these two it is asked only how much they hold
            holds.get_seq_length, holds.get_mask_sizes = lambda: start, lambda rows: (start + rows, 0)
        return layer


def _nothing() -> KeyValue:
    """Keys and values of a block that keeps none."""
    none = torch.empty(1, 1, 0, 1)
    return KeyValue(none, none)


def _unwindowed(layer: Any) -> Any:
    """The same kind of cache without a window: it keeps what a windowed one would drop, and masks leave it out."""
    if type(layer) is DynamicSlidingWindowLayer:
        return DynamicLayer()
    if type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
        return LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return layer


def is_growing(past: Any) -> bool:
    """Whether one writer takes it further in place."""
    return isinstance(past, GrowingKeyValue) or (isinstance(past, RecurrentState) and past.owned)


def joined(news: Sequence[Any]) -> Any:
    """What a block has left after rows that were run one after the other."""
    if isinstance(news[0], KeyValue):
        return KeyValue(*(torch.cat(parts, 2) for parts in zip(*news, strict=True)))
    return news[-1]
