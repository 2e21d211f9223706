"""Rotary positions: tables of angles, made by the model's own module, and the turning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from microscope.models import declarations


class Rotary:
    """Tables for positions 0, 1, …; they are made when first needed and grow.

    Args:
        module: the model's own, which knows every kind of rotation.
        declared: what its tables look like, and how they are used.
        longest: positions that the tables may hold: a longer table would be another one where the rotation
            depends on the length.
    """

    def __init__(self, module: Any, declared: declarations.Rotary, longest: int) -> None:
        self._module, self._declared, self._longest = module, declared, longest
        self._tables: dict[str, tuple[Tensor, Tensor]] = {}

    def turns(self, config: Any, layer: int, window: int | None) -> bool:
        """Whether the queries and keys of a block are turned."""
        match self._declared.where:
            case "everywhere":
                return True
            case "windowed":
                return window is not None or not getattr(config, "sliding_window", None)
            case "listed":
                return bool(config.no_rope_layers[layer])

    def tables(self, kind: str, start: int, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[end − start, turned dimensions]`` of positions, for blocks of a kind."""
        kind = kind if self._declared.by_kind else ""
        known = self._tables.get(kind)
        if known is None or len(known[0]) < end:
            known = self._tables[kind] = self._made(kind, end, like)
        return known[0][start:end], known[1][start:end]

    def turn(self, x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Turn ``[batch, heads, rows, head_dim]``; dimensions behind those of the tables stay as they are."""
        cos, sin = tables
        turned = cos.shape[-1]
        if turned < x.shape[-1]:
            return torch.cat((self.turn(x[..., :turned], tables), x[..., turned:]), -1)
        exact = x.float() if self._declared.exact else x
        return (exact * cos + self._swapped(exact) * sin).to(x.dtype)

    def _swapped(self, x: Tensor) -> Tensor:
        """The other dimension of every pair, with the sign that turning gives it."""
        if self._declared.pairs:
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        half = x.shape[-1] // 2
        return torch.cat((-x[..., half:], x[..., :half]), -1)

    def _made(self, kind: str, end: int, like: Tensor) -> tuple[Tensor, Tensor]:
        # No inference tensors, even where the first caller runs in inference mode: runs with gradients use them, too.
        with torch.inference_mode(False), torch.no_grad():
            length = max(end, min(max(256, 2 * end), self._longest))
            positions = torch.arange(length, device=like.device)[None]
            values = torch.empty(0, dtype=like.dtype, device=like.device)
            cos, sin = self._module(values, positions, *((kind,) if kind else ()))
            if self._declared.sines_first:
                cos, sin = sin, cos
            return self._laid_out(cos[0]), self._laid_out(sin[0])

    def _laid_out(self, table: Tensor) -> Tensor:
        """A table with the angle of every dimension where its pair expects it."""
        match self._declared.table:
            case "once":
                once = table
            case "behind":
                once = table[:, : table.shape[1] // 2]
            case "in_a_row":
                once = table[:, ::2]
        return once.repeat_interleave(2, -1) if self._declared.pairs else torch.cat((once, once), -1)
