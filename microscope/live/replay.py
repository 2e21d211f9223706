"""Re-run only what a plan changes, relative to a run that is at hand.

The reference is the run, of the baseline and the last few plans, that agrees with the new plan up to the
highest layer. From there on only positions from the first row that differs are computed: causal attention
cannot carry a change backwards, so earlier rows, and their keys and values, are the reference's. A recurrent
state cannot be cut at a row: such models start at the first one. If no row differs anywhere the answer is the
reference's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from microscope.live.run import LayerState, PromptRun, embed, run_block, run_head
from microscope.models import BlockRunner, KeyValue
from microscope.models.runner import Rows
from microscope.patching.apply import EditEffect, Saes
from microscope.patching.program import Program
from microscope.sae import Codes


@dataclass(frozen=True)
class Replayed:
    """A patched run and where its recomputation began; both are −1 when nothing had to be computed."""

    run: PromptRun
    first_layer: int
    first_position: int


@torch.inference_mode()
def replay(runner: BlockRunner, references: Sequence[PromptRun], program: Program, saes: Saes) -> Replayed:
    """Run a prompt under a program.

    Args:
        runner: the model.
        references: runs of the same prompt, the baseline among them.
        program: what to change.
        saes: the autoencoders it refers to.

    Raises:
        MicroscopeError: what :meth:`SiteEdits.delta` and :func:`run_block` raise.
    """
    nearest = _nearest(runner, references, program, saes)
    if not _top_is_plain(program):
        nearest = nearest.complete(runner)
    return _Replay(runner, program, saes).against(nearest)


def _top_is_plain(program: Program) -> bool:
    """Whether nothing happens in or behind the top block, so that its last row is all that matters."""
    top = len(program.site_keys) - 1
    return top not in program.sites and program.block_patch(top) is None


def _nearest(runner: BlockRunner, references: Sequence[PromptRun], program: Program, saes: Saes) -> PromptRun:
    """The reference that leaves least to compute."""
    differences = [_differences(run.program, program) for run in references]
    furthest = max(found[0] for found in differences)
    tied = [
        (run, len(found)) for run, found in zip(references, differences, strict=True) if found[0] == furthest
    ]
    if len(tied) == 1 or furthest % 2 == 0 or furthest >= 2 * len(program.site_keys):
        return min(tied, key=lambda pair: pair[1])[0]
    # They agree on the stream in front of this site: what the edits make of it tells them apart.
    layer = furthest // 2
    if layer == len(program.site_keys) - 1:
        tied = [(run.complete(runner), count) for run, count in tied]
    state = tied[0][0].layers[layer]
    edited, _ = _edit_site(program, saes, layer, state.x, state, tied[0][0].special)
    return max(tied, key=lambda pair: (first_difference(edited, pair[0].layers[layer].edited), -pair[1]))[0]


def _differences(old: Program, new: Program) -> list[int]:
    """Where two programs differ: −2 for the embedding, 2·layer inside a block, 2·layer + 1 behind it; then the end."""
    found = [] if old.embedding_key == new.embedding_key else [-2]
    for layer, (block, site) in enumerate(zip(new.block_keys, new.site_keys, strict=True)):
        if block != old.block_keys[layer]:
            found.append(2 * layer)
        if site != old.site_keys[layer]:
            found.append(2 * layer + 1)
    return [*found, 2 * len(new.site_keys)]


def first_difference(a: Tensor, b: Tensor) -> int:
    """First row in which two tensors ``[rows, d]`` are not the same, bit for bit; the number of rows if none."""
    if a is b:
        return len(a)
    rows = (a != b).any(1).nonzero()
    return int(rows[0]) if len(rows) else len(a)


def _edit_site(
    program: Program, saes: Saes, layer: int, x: Tensor, state: LayerState, special: Tensor
) -> tuple[Tensor, tuple[EditEffect, ...]]:
    """A site's edits on whole rows ``x`` that are ``state``'s own."""
    site = program.sites.get(layer)
    if site is None:
        return x, ()
    for name in site.encoding(saes):
        if name not in state.codes:
            state.codes[name] = saes[name].encode(x.float())
    delta, effects = site.delta(x, saes, special, codes=state.codes)
    return (x if delta is None else x + delta.to(x.dtype)), tuple(effects)


class _Replay:
    """One pass over the layers; ``start`` is the first row that differs from the reference so far."""

    def __init__(self, runner: BlockRunner, program: Program, saes: Saes) -> None:
        self._runner, self._program, self._saes = runner, program, saes
        self._known_rows: Rows | None = None

    def against(self, reference: PromptRun) -> Replayed:
        """Compute what differs from the reference."""
        program, runner = self._program, self._runner
        rows = self._rows = self._start = len(reference)
        self._reference = reference
        first = (-1, -1)
        embedded, sizes = reference.embedded, reference.embedding_sizes
        if program.embedding_key != reference.program.embedding_key:
            embedded, sizes = embed(runner, program, self._rows_from(0))
            self._start, first = 0, (0, 0)
        sizes = self._renumbered(sizes) if embedded is reference.embedded else sizes
        stream, layers = embedded, []
        for layer in range(runner.n_layers):
            state = self._layer(layer, stream)
            layers.append(state)
            stream = state.edited
            if self._start < rows and first[0] < 0:
                first = (layer, self._start)
        head_sizes: dict[int, Tensor] = {}
        if self._start == rows and not program.head and not reference.program.head:
            logits = reference.logits
        else:
            if self._start == rows:  # the head alone: it reads the last row
                first = (runner.n_layers - 1, rows - 1)
            logits, head_sizes = run_head(runner, program, stream[-1], rows)
            first = (first[0], min(first[1], self._start))
        run = PromptRun(
            reference.tokens, reference.special, program, embedded, sizes, tuple(layers), logits, head_sizes
        )
        return Replayed(run, *first)

    def _layer(self, layer: int, stream: Tensor) -> LayerState:
        old, program = self._reference.layers[layer], self._program
        block_changed = program.block_keys[layer] != self._reference.program.block_keys[layer]
        site_changed = program.site_keys[layer] != self._reference.program.site_keys[layer]
        if self._start == self._rows and not block_changed:
            if not site_changed:
                return replace(old, block_sizes=self._renumbered(old.block_sizes))
            x, past, sizes, codes = old.x, old.past, self._renumbered(old.block_sizes), old.codes
        else:
            if block_changed:
                self._start = 0
            if layer == self._runner.n_layers - 1 and _top_is_plain(program):
                return self._top(layer, stream, old)
            x, past, sizes = self._block(layer, stream, old)
            codes = {}
        state = LayerState(x, x, past, sizes, (), codes)
        if site_changed or self._start < self._rows:
            edited, effects = self._site(layer, state, old, whole=site_changed)
            state = LayerState(x, edited, past, sizes, effects, state.codes)
        if site_changed:
            self._differs_from(first_difference(state.edited, old.edited))
        return state

    def _differs_from(self, row: int) -> None:
        """Rows from this one on differ from the reference's."""
        cut = self._runner.cuttable or row == self._rows
        self._start = min(self._start, row if cut else 0)

    def _rows_from(self, start: int) -> Rows:
        """The prompt's rows from a position on; kept while the position stays."""
        if self._known_rows is None or self._known_rows.start != start:
            self._known_rows = self._runner.rows(self._reference.tokens[None], start)
        return self._known_rows

    def _top(self, layer: int, stream: Tensor, old: LayerState) -> LayerState:
        """The top block, where it is what it was and only its last row is read."""
        start = self._start
        kept = old.past.upto(start) if start else None
        out, new = self._runner.last_row(layer, stream[None, start:], self._rows_from(start), kept)
        past = new.compact() if kept is None else kept.followed_by(new, start)
        x = out[0].clone()  # it may be a view of all rows
        return LayerState(x, x, past, {}, (), only_last=True)

    def _block(
        self, layer: int, stream: Tensor, old: LayerState
    ) -> tuple[Tensor, KeyValue, dict[int, Tensor]]:
        start = self._start
        kept = old.past.upto(start) if start else None
        rows = self._rows_from(start)
        out, new, fresh = run_block(self._runner, self._program, layer, stream[start:], rows, kept)
        if not start:
            return out, new.compact(), fresh
        before = self._renumbered(old.block_sizes)
        sizes = {number: torch.cat((before[number][:start], size)) for number, size in fresh.items()}
        assert kept is not None
        return torch.cat((old.x[:start], out)), kept.followed_by(new, start), sizes

    def _site(
        self, layer: int, state: LayerState, old: LayerState, *, whole: bool
    ) -> tuple[Tensor, tuple[EditEffect, ...]]:
        """The site's edits, on all rows, or only on those that differ when the edits themselves do not."""
        site = self._program.sites.get(layer)
        if site is None:
            return state.x, ()
        start, x = self._start, state.x
        if x is not old.x:
            self._encode_rest(layer, state, old)
        if whole or start == 0:
            return _edit_site(self._program, self._saes, layer, x, state, self._reference.special)
        codes = {name: Codes(*(t[start:] for t in state.codes[name])) for name in site.encoding(self._saes)}
        delta, effects = site.delta(
            x[start:], self._saes, self._reference.special[start:], start, codes=codes
        )
        rest = x[start:] if delta is None else x[start:] + delta.to(x.dtype)
        # The same edits acted on the same rows in front of the start.
        earlier = {effect.edit: effect.sizes for effect in old.effects}
        merged = (
            EditEffect(effect.edit, torch.cat((earlier[effect.edit][:start], effect.sizes)))
            for effect in effects
        )
        return torch.cat((old.edited[:start], rest)), tuple(merged)

    def _encode_rest(self, layer: int, state: LayerState, old: LayerState) -> None:
        """Encode the rows that differ; those in front are the reference's."""
        start, site = self._start, self._program.sites[layer]
        for name in site.encoding(self._saes):
            if name not in old.codes and start:
                old.codes[name] = self._saes[name].encode(old.x.float())
            fresh = self._saes[name].encode(state.x[start:].float())
            state.codes[name] = _stacked(old.codes[name], fresh, start) if start else fresh

    def _renumbered(self, sizes: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Sizes by the number of the edit in the new program, which counts its edits anew."""
        known = {self._reference.program.edits[number]: size for number, size in sizes.items()}
        return {n: known[edit] for n, edit in enumerate(self._program.edits) if edit in known}


def _stacked(old: Codes, fresh: Codes, start: int) -> Codes:
    """Codes of the first rows of one run and the rest of another; their widths may differ."""
    width = max(old.values.shape[1], fresh.values.shape[1])

    def padded(t: Tensor) -> Tensor:
        return torch.nn.functional.pad(t, (0, width - t.shape[1]))

    return Codes(
        torch.cat((padded(old.values[:start]), padded(fresh.values))),
        torch.cat((padded(old.indices[:start]), padded(fresh.indices))),
    )
