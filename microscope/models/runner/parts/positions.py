"""What the blocks of one forward pass share: which positions are new, and what each of them sees."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from microscope.models.runner.parts.rotary import Rotary


class Seen(NamedTuple):
    """Keys that new positions see: from ``first`` on, through a mask ``[rows, keys]``, or causally, or all."""

    first: int
    mask: Tensor | None
    causal: bool


class Positions:
    """New positions ``start … end − 1``; what follows from them is made when first asked, once.

    Masks and tables are for streams of the precision, and on the device, of the tensor ``like``.
    """

    def __init__(self, start: int, end: int, rotary: Rotary | None, like: Tensor) -> None:
        self.start, self.end = start, end
        self._rotary, self._like = rotary, like
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}
        self._seen: dict[int | None, Seen] = {}
        self._growth: Tensor | None = None

    def tables(self, kind: str) -> tuple[Tensor, Tensor]:
        """Rotary tables of these positions, for blocks of a kind."""
        found = self._tables.get(kind)
        if found is None:
            assert self._rotary is not None
            found = self._tables[kind] = self._rotary.tables(kind, self.start, self.end, self._like)
        return found

    def growth(self, rate: float, base: int) -> Tensor:
        """Factors ``1 + rate·log(1 + ⌊position / base⌋)`` of these positions' queries, ``[rows, 1]``."""
        if self._growth is None:
            positions = torch.arange(self.start, self.end, device=self._like.device)
            factors = 1 + rate * torch.log(1 + torch.floor(positions / base))
            self._growth = factors.to(self._like.dtype)[:, None]
        return self._growth

    def seen(self, window: int | None) -> Seen:
        """Which keys the positions see, the last ``window`` of each alone if there is one."""
        if window not in self._seen:
            self._seen[window] = self._made(window)
        return self._seen[window]

    def seen_by_last(self, window: int | None) -> Seen:
        """The same of the last position alone."""
        return Seen(0 if window is None else max(0, self.end - window), None, causal=False)

    def _made(self, window: int | None) -> Seen:
        rows = self.end - self.start
        if rows == 1:
            return self.seen_by_last(window)
        if window is None or self.end <= window:
            if self.start == 0:
                return Seen(0, None, causal=True)
            window = self.end
        first = max(0, self.start - window + 1)
        allowed = torch.ones(rows, self.end - first, dtype=torch.bool, device=self._like.device)
        offset = self.start - first
        return Seen(first, allowed.tril_(offset).triu_(offset - window + 1), causal=False)
