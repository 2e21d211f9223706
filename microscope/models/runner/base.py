"""The interface every family's runner fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from microscope.models.runner.patch import BlockPatch, Delta
from microscope.models.runner.product import Product


class KeyValue(NamedTuple):
    """Keys and values of one block, each ``[batch, kv_heads, positions, head_dim]``. Never written to.

    Both may differ in width, and stand for what a family computes them from.
    """

    key: Tensor
    value: Tensor

    def upto(self, position: int) -> KeyValue:
        """The part before a position (a view)."""
        return KeyValue(self.key[:, :, :position], self.value[:, :, :position])

    def compact(self) -> KeyValue:
        """The same in storage of its own: runners cut keys and values out of larger products, which would stay alive."""
        if self.key.untyped_storage().nbytes() + self.value.untyped_storage().nbytes() == self.nbytes:
            return self
        if self.key.shape != self.value.shape:  # as of families that keep both in short form
            return KeyValue(self.key.clone(), self.value.clone())
        return KeyValue(*torch.stack((self.key, self.value)))

    def growing(self) -> GrowingKeyValue:
        """A copy that one writer extends in place."""
        return GrowingKeyValue(self)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Everything held."""
        return self.key, self.value

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.key.nbytes + self.value.nbytes

    def followed_by(self, new: KeyValue, start: int) -> KeyValue:
        """These, of all positions before ``start``, then new ones."""
        return KeyValue(torch.cat((self.key, new.key), 2), torch.cat((self.value, new.value), 2))


class GrowingKeyValue:
    """Keys and values that one writer extends in place, with room to spare; what it began with is copied."""

    def __init__(self, begin: KeyValue, room: int = 64) -> None:
        self._key, self._value = (_with_room(t, room) for t in begin)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Everything held."""
        return self._key, self._value

    def followed_by(self, new: KeyValue, start: int) -> KeyValue:
        """Write new ones at ``start``, over what may be there, and return all up to their end (views)."""
        end = start + new.key.shape[2]
        if end > self._key.shape[2]:
            self._key, self._value = (_with_room(t, end) for t in (self._key, self._value))
        self._key[:, :, start:end], self._value[:, :, start:end] = new
        return KeyValue(self._key[:, :, :end], self._value[:, :, :end])


def _with_room(t: Tensor, room: int) -> Tensor:
    """A copy ``[batch, heads, positions + room, head_dim]``."""
    copy = t.new_empty((*t.shape[:2], t.shape[2] + room, t.shape[3]))
    copy[:, :, : t.shape[2]] = t
    return copy


@dataclass(frozen=True)
class Rows:
    """The rows of a forward pass that are new: those from ``start`` on of sequences ``tokens`` ``[batch, positions]``.

    ``arguments`` are what a model's own forward pass hands its blocks for them besides the residual stream,
    where a runner calls the model's own blocks.
    """

    tokens: Tensor
    start: int = 0
    arguments: Any = None

    @property
    def new(self) -> Tensor:
        """Token ids of the new rows, ``[batch, rows]``."""
        return self.tokens[:, self.start :]


Past = KeyValue | GrowingKeyValue


class BlockRunner(ABC):
    """A decoder as a chain of pure functions.

    Nothing is cached inside and no hook is set: keys and values of earlier positions are arguments,
    those of the new positions are returned. So a forward pass under one person's edits cannot leave a
    trace in another's.
    """

    # fast: our own composition of the model's weights; general: the model's own blocks, called one by one.
    path: Literal["fast", "general"] = "fast"
    n_layers: int
    d_model: int
    # Whether what a block keeps of earlier positions can be cut at any of them. Recurrent states cannot: where
    # a row differs, all rows of the block and of those above it are computed again.
    cuttable: bool = True
    # What was measured against a plain pass of the model, and why a faster path does not serve; of proven runners.
    proof: Any = None
    why: str = ""

    def rows(self, tokens: Tensor, start: int = 0) -> Rows:
        """What :meth:`embed` and :meth:`block` need to know of the rows from ``start`` on of ids ``[batch, positions]``."""
        return Rows(tokens, start)

    @abstractmethod
    def embed(self, rows: Rows) -> Tensor:
        """The input of block 0, ``[batch, rows, d]``."""

    @abstractmethod
    def block(
        self, layer: int, x: Tensor, rows: Rows, past: Past | None, patch: BlockPatch | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Run one block.

        Args:
            layer: which block.
            x: its input ``[batch, rows, d]``.
            rows: which rows these are.
            past: keys and values of the positions before ``rows.start`` of this block; None when that is 0.
            patch: changes of this block's weights for this call only.

        Returns:
            The block's output, same shape as ``x``, and the keys and values of the rows of ``x``.
        """

    def last_row(self, layer: int, x: Tensor, rows: Rows, past: Past | None) -> tuple[Tensor, KeyValue]:
        """As :meth:`block` without a patch, but the output of the last row only, ``[batch, 1, d]``.

        Keys and values are those of all rows. In front of the head nothing else of the top block is needed.
        """
        out, new = self.block(layer, x, rows, past)
        return out[:, -1:], new

    @property
    def products(self) -> Iterable[Product]:
        """Products with the model's weights that may be packed, those needed most often first."""
        return ()

    def pack(self, budget: int) -> int:
        """Lay weights out for the processor until the budget in bytes is spent; returns what was spent."""
        spent = 0
        for product in self.products:
            if spent + product.nbytes > budget:
                break
            spent += product.pack()
        return spent

    @abstractmethod
    def head(self, x: Tensor, deltas: Sequence[Delta] = ()) -> Tensor:
        """Output of the last block ``[…, d]`` to logits ``[…, vocabulary]``, with changes of the head's weight."""

    @abstractmethod
    def normalise(self, x: Tensor) -> Tensor:
        """The final norm alone, ``[…, d]`` to ``[…, d]``."""

    @property
    @abstractmethod
    def unembedding(self) -> Tensor:
        """Weight of the head, ``[vocabulary, d]``."""

    @property
    @abstractmethod
    def final_gain(self) -> Tensor:
        """Elementwise gain of the final norm, ``[d]``."""


def with_deltas(x: Tensor, y: Tensor, deltas: Sequence[Delta]) -> Tensor:
    """A module's output ``y`` for inputs ``x`` with low-rank changes of its weight."""
    for delta in deltas:
        y = y + delta(x).to(y.dtype)
    return y


def run_blocks(runner: BlockRunner, x: Tensor, rows: Rows, first: int, last: int) -> Tensor:
    """Blocks ``first … last−1`` on whole sequences ``[batch, positions, d]`` of rows that start at position 0."""
    for layer in range(first, last):
        x, _ = runner.block(layer, x, rows, None)
    return x
