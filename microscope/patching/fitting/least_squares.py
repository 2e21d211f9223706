"""The first step of a fit: the best linear map from what a block's output matrices read to what the edits add.

For a block's edits with delta Δ_t and the inputs h_t of its output projections, ridge regression gives
``M = (Σ w h hᵀ + ρI)⁻¹ Σ w h Δᵀ``; its rank is then cut in the metric of the outputs it really produces
(reduced-rank regression). With k edits of features Δ lies in k directions and nothing is cut away.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models import LoadedModel, module_at
from microscope.patching.adapters import LowRank
from microscope.patching.fitting.samples import TextWindow
from microscope.patching.hooks import PatchedModel
from microscope.progress import Progress

# Every third window is for validation: the ridge is chosen on it.
_CHECK_EVERY = 3
_RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
_BATCH = 8


@dataclass
class Moments:
    """Sums over rows of one kind: ``h hᵀ``, ``h Δᵀ``, ``Δ Δᵀ``'s trace, in float64."""

    hh: Tensor
    hd: Tensor
    dd: float = 0.0
    rows: int = 0

    @classmethod
    def empty(cls, width: int, d: int) -> Moments:
        return cls(torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, d, dtype=torch.float64))

    def add(self, h: Tensor, delta: Tensor) -> None:
        """Rows of inputs ``[rows, width]`` and targets ``[rows, d]``."""
        self.hh += (h.T @ h).double().cpu()
        self.hd += (h.T @ delta).double().cpu()
        self.dd += float(delta.double().square().sum())
        self.rows += len(h)

    def error(self, m: Tensor) -> float:
        """``Σ ‖Δ − Mᵀh‖²``."""
        return float(self.dd - 2 * (m * self.hd).sum() + (m * (self.hh @ m)).sum())


@dataclass(frozen=True)
class Solution:
    """Deltas by module path, and the share of ‖Δ‖² explained where edits fire, on validation windows.

    ``leak`` is the mean squared norm of what is added where nothing should be, over that of Δ where it fires.
    """

    deltas: dict[str, LowRank]
    r2: float
    leak: float


class Collector:
    """Gathers the moments of one block while the patched model runs."""

    def __init__(
        self, loaded: LoadedModel, layer: int, constant: Tensor | None, avoid: Collection[str] = ()
    ) -> None:
        self.layer, self._scales = layer, projections(loaded, layer, avoid)
        self._modules = [module_at(loaded.model, path) for path in self._scales]
        self._inputs: list[Tensor] = [torch.empty(0)] * len(self._modules)
        self._constant = constant
        self.moments: dict[tuple[bool, bool], Moments] = {}

    def attach(self) -> list[Any]:
        """Hooks that catch what the projections read."""

        def catch(place: int) -> Any:
            def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                self._inputs[place] = inputs[0].detach()

            return hook

        return [m.register_forward_pre_hook(catch(i)) for i, m in enumerate(self._modules)]

    def add(self, delta: Tensor, real: Tensor, *, validation: bool) -> None:
        """One batch: deltas ``[batch, positions, d]`` and which positions are no padding."""
        # Some modules read the positions of all sequences as one list.
        h = torch.cat([x.reshape(*real.shape, x.shape[-1]) for x in self._inputs], dim=2).float()[real]
        target = delta.float()[real]
        if self._constant is not None:
            target = target - self._constant
        fires = target.norm(dim=1) > 0
        for kind in (True, False):
            rows = fires == kind
            where = self.moments.setdefault((kind, validation), Moments.empty(h.shape[1], target.shape[1]))
            where.add(h[rows], target[rows])

    def solve(self, rank: int) -> Solution | None:
        """The deltas of the projections; None when no edit ever fired."""
        fire, silent = self.moments[True, False], self.moments[False, False]
        checks = self.moments[True, True], self.moments[False, True]
        if not fire.rows:
            return None
        # Between "every row alike" and "firing rows count as much as all others together".
        weight = max(1.0, (silent.rows / fire.rows) ** 0.5)
        hh, hd = weight * fire.hh + silent.hh, weight * fire.hd + silent.hd
        scale = float(hh.diagonal().mean())
        candidates = [self._cut(hh, hd, ridge * scale, rank) for ridge in _RIDGES]
        judge = [c for c in checks if c.rows] or [fire, silent]
        best = min(
            candidates, key=lambda m: sum(c.error(m) * (weight if c is judge[0] else 1) for c in judge)
        )
        seen = checks[0] if checks[0].rows else fire
        quiet = checks[1] if checks[1].rows else silent
        leak = quiet.error(best) / max(quiet.rows, 1) / (seen.dd / seen.rows) if quiet.rows else 0.0
        return Solution(self._factors(best, rank), 1 - seen.error(best) / seen.dd, leak)

    @staticmethod
    def _cut(hh: Tensor, hd: Tensor, ridge: float, rank: int) -> Tensor:
        solved = torch.linalg.solve(hh + ridge * torch.eye(len(hh), dtype=hh.dtype), hd)
        values, vectors = torch.linalg.eigh(solved.T @ (hh @ solved))
        u = vectors[:, values > 1e-12 * values[-1].clamp_min(1e-300)][:, -rank:]
        return (solved @ u) @ u.T

    def _factors(self, m: Tensor, rank: int) -> dict[str, LowRank]:
        u, s, v = torch.linalg.svd(m, full_matrices=False)
        keep = (s > 1e-9 * s[0]).nonzero()[:, 0][:rank]
        root = s[keep].sqrt()
        a, b = (u[:, keep] * root).T.float(), (v[keep].T * root).float()
        parts = a.split([h.shape[-1] for h in self._inputs], dim=1)
        return {
            path: LowRank(part.contiguous(), b / scale)
            for (path, scale), part in zip(self._scales.items(), parts, strict=True)
        }


def projections(loaded: LoadedModel, layer: int, avoid: Collection[str] = ()) -> dict[str, float]:
    """A block's output matrices that can be changed by low rank, with what the block multiplies their output by.

    Those whose names end in a part to ``avoid`` are left out.
    """
    block, parts = loaded.family.block_path(layer), loaded.family.parts_of(layer)
    named = {
        parts.attention_projection: parts.attention_scale,
        parts.mlp_projection: parts.mlp_scale,
    }
    found = {
        f"{block}.{part}": scale
        for part, scale in named.items()
        if part is not None and part.rpartition(".")[2] not in avoid
    }
    return {
        path: s for path, s in found.items() if isinstance(module_at(loaded.model, path), nn.Linear | Conv1D)
    }


def least_squares(
    loaded: LoadedModel,
    teacher: PatchedModel,
    layers: dict[int, Tensor | None],
    windows: Sequence[TextWindow],
    rank: int,
    deadline: float,
    progress: Progress,
    avoid: Collection[str] = (),
) -> tuple[dict[int, Solution], int]:
    """Solutions by block, and the tokens read.

    Args:
        layers: edited blocks, each with the constant that is held exactly, if any.
        deadline: when reading stops, at the soonest after a few batches.
        avoid: last parts of the names of matrices that are not to be changed.
    """
    collectors = {layer: Collector(loaded, layer, constant, avoid) for layer, constant in layers.items()}
    total = sum(len(w.tokens) for w in windows)
    done = 0
    with progress.phase("least squares", total, "tokens"):
        for number, batch in enumerate(batched(windows)):
            tokens, real = padded(batch)
            handles = [handle for c in collectors.values() for handle in c.attach()]
            validation = number % _CHECK_EVERY == _CHECK_EVERY - 1

            def observe(
                layer: int, delta: Tensor, real: Tensor = real, validation: bool = validation
            ) -> None:
                if layer in collectors:
                    collectors[layer].add(delta, real.to(delta.device), validation=validation)

            try:
                teacher(tokens, observe, prompts_of(batch))
            finally:
                for handle in handles:
                    handle.remove()
            done += int(real.sum())
            progress.advance(done)
            if progress.now() > deadline and number >= _CHECK_EVERY:
                break
        progress.advance(done, final=True)
    for collector in collectors.values():
        for key in ((f, a) for f in (True, False) for a in (True, False)):
            some = next(iter(collector.moments.values()))
            collector.moments.setdefault(key, Moments.empty(*some.hd.shape))
    solved = {layer: c.solve(rank) for layer, c in collectors.items()}
    return {layer: solution for layer, solution in solved.items() if solution is not None}, done


def batched(windows: Sequence[TextWindow], size: int = _BATCH) -> list[list[TextWindow]]:
    """Windows in batches, mixed by a fixed stride so that firing and ordinary ones meet."""
    count = -(-len(windows) // size)
    return [list(windows[i::count]) for i in range(count)]


def prompts_of(windows: Sequence[TextWindow]) -> list[int | None]:
    """How much of each window is prompt."""
    return [w.prompt for w in windows]


def padded(windows: Sequence[TextWindow]) -> tuple[Tensor, Tensor]:
    """Token ids ``[batch, longest]``, padded on the right, and which are real."""
    longest = max(len(w.tokens) for w in windows)
    tokens = torch.zeros(len(windows), longest, dtype=torch.long)
    real = torch.zeros(len(windows), longest, dtype=torch.bool)
    for row, window in enumerate(windows):
        n = len(window.tokens)
        tokens[row, :n] = torch.from_numpy(window.tokens)
        tokens[row, n:] = int(window.tokens[-1])
        real[row, :n] = True
    return tokens, real
