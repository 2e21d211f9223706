"""Rows of one batch on the running model, in each of which one thing was taken out of the prompt's run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from microscope.live.run import PromptRun
from microscope.models import BlockRunner, KeyValue, LoadedModel
from microscope.models.runner import BlockPatch, Rows
from microscope.params import Site
from microscope.params.sites import SiteKind
from microscope.provenance.cuts import Cut
from microscope.provenance.passes import watch

# Multiplications in one batch on a processor: about a fifth of a second, so that others' turns come soon.
_WORK, _WORK_ELSEWHERE = 10**10, 10**12
# Bytes that a batch may take beside the weights.
_MEMORY = 256 * 2**20

_EMBEDDING = Site("resid_post", -1)


@dataclass(frozen=True)
class Hold:
    """A feature kept at what it adds in the unpatched run, whatever happens in front of it.

    ``cut`` is its SAE on the unpatched run.
    """

    cut: Cut
    index: int
    position: int


@dataclass(frozen=True)
class Ablation:
    """One row: what is taken away ``[width]``, and a feature that is held meanwhile."""

    taken: Tensor
    hold: Hold | None = None


@dataclass
class Seen:
    """Activations of a batch, ``[rows, positions, width]`` from position ``start`` on, by site.

    ``notes`` keeps what a reader found out about the batch.
    """

    start: int
    rows: int
    at_sites: dict[Site, Tensor] = field(default_factory=dict)
    notes: dict[object, Tensor] = field(default_factory=dict)

    def at(self, site: Site, position: int) -> Tensor:
        """One position of a site, ``[rows, width]``; it is not in front of ``start``."""
        return self.at_sites[site][:, position - self.start].float()


class Ablations:
    """Runs a prompt without some of its parts; nothing is held constant.

    A row whose change begins at some block and position is computed from there on, behind the unpatched run's
    keys and values. Where a runner's states cannot be cut at a position, whole sequences are computed.

    Args:
        loaded: the model.
        runner: computes it.
        baseline: its unpatched run of the prompt.
        last: last position that matters.
        sites: what will be read anywhere.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        runner: BlockRunner,
        baseline: PromptRun,
        last: int,
        sites: Collection[Site],
    ) -> None:
        self._loaded, self._runner, self._baseline, self.last = loaded, runner, baseline, last
        self._whole = not runner.cuttable or any(
            type(state.past) is not KeyValue for state in baseline.layers
        )
        blocks = loaded.model.get_submodule(loaded.family.blocks)
        self._weights = max(1, sum(p.numel() for p in blocks.parameters()) // runner.n_layers)
        nothing = Ablation(torch.zeros(runner.d_model, device=loaded.device))
        self.unchanged = self.run(_EMBEDDING, 0, [nothing], sites)

    def most_rows(self, place: Site, position: int, sites: Collection[Site]) -> int:
        """Rows that one batch may have when something is taken at a place, and what it is to be read at these sites."""
        positions = self.last + 1 - self._start(position)
        blocks = max(1, max(site.layer for site in sites) - _first(place) + 1)
        work = _WORK if self._loaded.device.type == "cpu" else _WORK_ELSEWHERE
        # A block's inner widths together are its weights over the stream's width; each is held about twice.
        widths = 2 * self._weights // self._runner.d_model + self._runner.d_model * len(sites)
        by_work = work // (self._weights * blocks * positions)
        return max(1, min(by_work, _MEMORY // (4 * widths * positions)))

    @torch.inference_mode()
    def run(self, place: Site, position: int, rows: Sequence[Ablation], sites: Collection[Site]) -> Seen:
        """One batch.

        Args:
            place: where something is taken away: the stream behind a block (behind −1: the embedding), or what a
                half of a block adds to it.
            position: at which position.
            rows: what, and what is held.
            sites: what to read.
        """
        start, end = self._start(position), self.last + 1
        seen = Seen(start, len(rows))
        work = _Work(rows, place, position, seen, frozenset(sites), self._kept_for(rows))
        tokens = self._baseline.tokens[None, :end].expand(len(rows), end)
        new = self._runner.rows(tokens, start)
        first, top = _first(place), max(site.layer for site in sites)
        below = self._baseline.layers[first - 1].edited if first else self._baseline.embedded
        x = below[start:end].expand(len(rows), -1, -1)
        x = work.passed(Site("resid_post", first - 1), x)
        for layer in range(first, top + 1):
            x = work.passed(Site("resid_post", layer), self._block(layer, x, new, work))
        return seen

    def _start(self, position: int) -> int:
        return 0 if self._whole else position

    def _kept_for(self, rows: Sequence[Ablation]) -> frozenset[Site]:
        """Sites that held features read in front of where they write."""
        return frozenset(row.hold.cut.reads for row in rows if row.hold is not None)

    def _block(self, layer: int, x: Tensor, rows: Rows, work: _Work) -> Tensor:
        past = None
        if rows.start:
            kept = self._baseline.layers[layer].past.upto(rows.start)
            past = KeyValue(*(t.expand(len(x), *t.shape[1:]) for t in kept))
        if not work.inside(layer):
            return self._runner.block(layer, x, rows, past)[0]
        if self._runner.path == "fast":
            patch = _Watching(x.shape, partial(work.half, layer, x))
            out = self._runner.block(layer, x, rows, past, patch)[0]
            patch.check_obeyed(layer)
            return out
        block: nn.Module = self._loaded.model.get_submodule(self._loaded.family.block_path(layer))
        parts = self._loaded.family.parts_of(layer)
        with ExitStack() as stack:
            for kind in ("attn_out", "resid_mid", "mlp_out"):
                tap = parts.tap(kind)
                if tap is not None and tap.path:
                    take = partial(work.changed, Site(kind, layer))
                    handle = watch(block.get_submodule(tap.path), tap, x.shape[:2], take)
                    stack.callback(handle.remove)
            return self._runner.block(layer, x, rows, past)[0]


def _first(place: Site) -> int:
    """The first block that has to be computed."""
    return place.layer + 1 if place.kind == "resid_post" else place.layer


@dataclass
class _Work:
    """What is taken, held and read while a batch passes."""

    rows: Sequence[Ablation]
    place: Site
    position: int
    seen: Seen
    sites: frozenset[Site]
    kept: frozenset[Site]
    _read: dict[Site, Tensor] = field(default_factory=dict)

    def inside(self, layer: int) -> bool:
        """Whether something happens within a block."""
        held = {row.hold.cut.writes for row in self.rows if row.hold is not None}
        every = {self.place, *self.sites, *self.kept, *held}
        return any(site.layer == layer and site.kind != "resid_post" for site in every)

    def half(self, layer: int, x: Tensor, kind: SiteKind, y: Tensor) -> Tensor:
        """What a half adds to the stream ``x``, in a block that computes halves in their order."""
        y = self.passed(Site(kind, layer), y)
        middle = Site("resid_mid", layer)
        if kind == "attn_out" and (middle in self.sites or middle in self.kept):
            self.passed(middle, x + y)
        return y

    def changed(self, site: Site, y: Tensor) -> Tensor | None:
        """As :meth:`passed`, but None where nothing is changed."""
        passed = self.passed(site, y)
        return None if passed is y else passed

    def passed(self, site: Site, y: Tensor) -> Tensor:
        """An activation ``[rows, positions, width]`` as it goes on."""
        delta: list[tuple[int, int, Tensor]] = []
        if site == self.place:
            delta += [(n, self.position, -row.taken) for n, row in enumerate(self.rows)]
        if site in self.kept:
            self._read[site] = y
        for n, row in enumerate(self.rows):
            if row.hold is not None and row.hold.cut.writes == site:
                delta.append((n, row.hold.position, self._missing(row.hold, n)))
        if delta:
            y = y.clone()
            for n, position, change in delta:
                if position >= self.seen.start:
                    y[n, position - self.seen.start] += change.to(y.dtype)
        if site in self.sites:
            self.seen.at_sites[site] = y
        return y

    def _missing(self, hold: Hold, row: int) -> Tensor:
        """What a held feature adds less than in the unpatched run, ``[width]``."""
        x = self._read[hold.cut.reads][row, hold.position - self.seen.start][None].float()
        now = hold.cut.sae.feature(x, hold.index) * hold.cut.sae.output_gain(x)[:, 0]
        direction = hold.cut.sae.W_dec[hold.index].detach()
        return hold.cut.contribution(hold.index, hold.position) - float(now) * direction


class _Watching(BlockPatch):
    """Changes no weight; what the two halves of a block add passes through ``see``, attention's first."""

    def __init__(self, shape: Sequence[int], see: Callable[[SiteKind, Tensor], Tensor]) -> None:
        super().__init__({})
        self._shape, self._see = shape, see

    def written(self, y: Tensor) -> Tensor:
        kind: SiteKind = "attn_out" if self.calls == 0 else "mlp_out"
        self.calls += 1
        return self._see(kind, y.reshape(self._shape)).reshape(y.shape)

    def check_obeyed(self, layer: int) -> None:
        assert self.calls == self.writers, f"block {layer} has {self.calls} halves"
