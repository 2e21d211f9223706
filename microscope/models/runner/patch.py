"""What a plan changes inside one block, for one forward pass: changed weights without changing weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.errors import MicroscopeError


@dataclass(frozen=True)
class Delta:
    """One low-rank change ``scale·B(Ax)`` of a module: A ``[r, in]``, B ``[out, r]``, for edit number ``edit``."""

    edit: int
    a: Tensor
    b: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """Of inputs ``[…, in]``: ``[…, out]`` in float32."""
        return self.scale * F.linear(F.linear(x.float(), self.a), self.b)


@dataclass
class BlockPatch:
    """An argument of one call of :meth:`BlockRunner.block`.

    Args:
        deltas: low-rank changes by module path within the block.
        span: orthonormal columns ``[d, k]`` removed from what attention and MLP add to the stream.
        directions: the unit directions the span was made of, by number of the edit.
        writers: how many modules of the block add to the stream.

    ``sizes`` receives, per edit, the largest L2 norm of its change at each row ``[rows]``; the first ``skip`` rows
    that a block runs on do not count, where earlier positions are computed again.
    """

    deltas: Mapping[str, Sequence[Delta]]
    span: Tensor | None = None
    directions: Mapping[int, Tensor] = field(default_factory=dict)
    writers: int = 2
    sizes: dict[int, Tensor] = field(default_factory=dict)
    calls: int = 0
    skip: int = 0

    def added(self, module: str, x: Tensor) -> Tensor | None:
        """What the deltas add to a module's output, in float32; None for no delta.

        Inputs are ``[1, rows, in]``, or ``[rows, in]`` where a module reads the rows of all sequences as one list.
        """
        total: Tensor | None = None
        for delta in self.deltas.get(module, ()):
            out = delta(x)
            self._note(delta.edit, out.norm(dim=-1))
            total = out if total is None else total + out
        if total is not None:
            self.calls += 1
        return total

    def changed(self, module: str, x: Tensor, y: Tensor) -> Tensor:
        """A module's output ``y`` for inputs ``x`` with the deltas, cast once."""
        extra = self.added(module, x)
        return y if extra is None else y + extra.to(y.dtype)

    def written(self, y: Tensor) -> Tensor:
        """What a half-block adds to the stream, ``[1, rows, d]`` or ``[rows, d]``, without the span."""
        if self.span is None:
            return y
        self.calls += 1
        exact = y.float()
        for edit, direction in self.directions.items():
            self._note(edit, (exact @ direction).abs())
        return y - ((exact @ self.span) @ self.span.T).to(y.dtype)

    def alone(self) -> BlockPatch:
        """The same changes, with sizes of their own: for one of several calls that together are one."""
        return BlockPatch(self.deltas, self.span, self.directions, self.writers)

    def add_row(self, later: BlockPatch) -> None:
        """Take over the sizes of a call on the rows behind those known so far."""
        self.calls = later.calls
        for edit, size in later.sizes.items():
            self.sizes[edit] = torch.cat((self.sizes[edit], size)) if edit in self.sizes else size

    def check_obeyed(self, layer: int) -> None:
        """After the call: whether every changed module, and all that writes when a span goes, called back.

        Raises:
            MicroscopeError: ``taps_missing``; no answer is better than one that looks patched and is not.
        """
        expected = len(self.deltas) + (0 if self.span is None else self.writers)
        if self.calls != expected:
            raise MicroscopeError(
                "taps_missing", f"Block {layer} obeyed {self.calls} of {expected} changes of its weights."
            )

    def _note(self, edit: int, size: Tensor) -> None:
        size = (size if size.dim() == 1 else size.amax(0))[self.skip :]
        known = self.sizes.get(edit)
        self.sizes[edit] = size if known is None else known.maximum(size)
