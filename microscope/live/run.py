"""A prompt's run with all its states kept: what the next run starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from microscope.models import BlockRunner, KeyValue
from microscope.models.runner import Past, Rows
from microscope.patching.apply import EditEffect
from microscope.patching.program import Program
from microscope.sae import Codes


@dataclass(frozen=True)
class LayerState:
    """One block under one program.

    ``x`` is the block's output ``[positions, d]``, ``edited`` the same behind the site's edits (the very
    same tensor when there are none), ``past`` the keys and values of all positions. ``block_sizes`` are
    row-wise sizes of the changes inside the block by edit, ``effects`` what the site's edits did.
    ``only_last`` is set where ``x`` and ``edited`` hold the last position alone, ``[1, d]``: of the top
    block nothing else reaches the answer.
    """

    x: Tensor
    edited: Tensor
    past: KeyValue
    block_sizes: Mapping[int, Tensor]
    effects: tuple[EditEffect, ...]
    # Encodings of x, filled when first needed and shared by every run that shares x.
    codes: dict[str, Codes] = field(default_factory=dict, compare=False)
    only_last: bool = False

    def tensors(self) -> Iterator[Tensor]:
        """Everything held."""
        yield from (self.x, self.edited, *self.past.tensors(), *self.block_sizes.values())
        yield from (effect.sizes for effect in self.effects)
        yield from (t for codes in self.codes.values() for t in codes)


@dataclass(frozen=True)
class PromptRun:
    """Everything an incremental re-run starts from. Shared by reference, so nothing may write to it.

    ``tokens`` and ``special`` are ``[positions]``, ``embedded`` the input of block 0 ``[positions, d]``,
    ``logits`` the last position's ``[vocabulary]`` in float32. ``head_sizes`` are row-wise sizes of changes
    of the head, which is asked at the last position only. The baseline is the run of the empty program.
    """

    tokens: Tensor
    special: Tensor
    program: Program
    embedded: Tensor
    embedding_sizes: Mapping[int, Tensor]
    layers: tuple[LayerState, ...]
    logits: Tensor
    head_sizes: Mapping[int, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def residuals(self) -> tuple[Tensor, ...]:
        """Output of every block before its site's edits, ``[positions, d]`` each."""
        return tuple(layer.x for layer in self.layers)

    @property
    def past(self) -> tuple[KeyValue, ...]:
        """Keys and values of every block."""
        return tuple(layer.past for layer in self.layers)

    @cached_property
    def digest(self) -> str:
        """Hash of the logits, 16 hex digits."""
        return hashlib.sha256(self.logits.cpu().numpy().tobytes()).hexdigest()[:16]

    def tensors(self) -> Iterator[Tensor]:
        """Everything held, with states shared with other runs."""
        yield from (self.tokens, self.special, self.embedded, self.logits, *self.embedding_sizes.values())
        for layer in self.layers:
            yield from layer.tensors()

    @property
    def nbytes(self) -> int:
        """Memory held, counting states shared with other runs."""
        return bytes_held(self.tensors())

    @torch.inference_mode()
    def complete(self, runner: BlockRunner) -> PromptRun:
        """The same run with the top block's output at all positions."""
        top = self.layers[-1]
        if not top.only_last:
            return self
        below = self.layers[-2].edited if len(self.layers) > 1 else self.embedded
        rows = runner.rows(self.tokens[None])
        x, _, _ = run_block(runner, self.program, len(self.layers) - 1, below, rows, None)
        return replace(self, layers=(*self.layers[:-1], replace(top, x=x, edited=x, only_last=False)))

    def effects(self) -> tuple[EditEffect, ...]:
        """What every edit of the program did, lowest first."""
        sizes: dict[int, Tensor] = dict(self.embedding_sizes)
        for layer in self.layers:
            for number, size in layer.block_sizes.items():
                sizes[number] = size if number not in sizes else sizes[number].maximum(size)
        for number, size in self.head_sizes.items():
            sizes[number] = size if number not in sizes else sizes[number].maximum(size)
        inside = tuple(EditEffect(self.program.edits[n], size) for n, size in sorted(sizes.items()))
        return inside + tuple(effect for layer in self.layers for effect in layer.effects)


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """Memory that tensors keep alive: their whole storages, each counted once."""
    storages = (t.untyped_storage() for t in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def embed(runner: BlockRunner, program: Program, rows: Rows) -> tuple[Tensor, dict[int, Tensor]]:
    """Input of block 0 ``[rows, d]`` for one sequence's rows, and the sizes of its changes."""
    x = runner.embed(rows)[0]
    if program.span is None:
        return x, {}
    exact = x.float()
    sizes = {n: (exact @ direction).abs() for n, direction in program.directions.items()}
    return x - ((exact @ program.span) @ program.span.T).to(x.dtype), sizes


def run_block(
    runner: BlockRunner, program: Program, layer: int, x: Tensor, rows: Rows, past: Past | None
) -> tuple[Tensor, KeyValue, dict[int, Tensor]]:
    """One block on rows ``[rows, d]`` under a program: output, new keys and values, sizes of changes inside.

    Raises:
        MicroscopeError: ``taps_missing``.
    """
    patch = program.block_patch(layer)
    if patch is None:
        out, new = runner.block(layer, x[None], rows, past)
        return out[0], new, {}
    out, new = runner.block(layer, x[None], rows, past, patch)
    patch.check_obeyed(layer)
    return out[0], new, patch.sizes


def run_head(
    runner: BlockRunner, program: Program, last: Tensor, rows: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Next-token logits ``[vocabulary]`` in float32 from the last row ``[d]`` of ``rows``, and sizes of changes."""
    sizes: dict[int, Tensor] = {}
    normed = runner.normalise(last) if program.head else last
    for delta in program.head:
        size = sizes.setdefault(delta.edit, torch.zeros(rows, device=last.device))
        size[-1] = size[-1].maximum(delta(normed).norm())
    return runner.head(last, program.head).float(), sizes


@torch.inference_mode()
def run_baseline(runner: BlockRunner, tokens: Tensor, special: Tensor) -> PromptRun:
    """Run a prompt ``[positions]`` unpatched through all blocks and keep every state."""
    program, rows = unpatched(runner.n_layers), runner.rows(tokens[None])
    embedded, _ = embed(runner, program, rows)
    x, layers = embedded, []
    for layer in range(runner.n_layers):
        x, past, _ = run_block(runner, program, layer, x, rows, None)
        layers.append(LayerState(x, x, past.compact(), {}, ()))
    logits = runner.head(x[-1]).float()
    return PromptRun(tokens, special, program, embedded, {}, tuple(layers), logits)


def states_bytes(runner: BlockRunner, device: torch.device) -> tuple[int, int]:
    """What the states of a run hold, measured on two short ones: bytes whatever its length, and for every position.

    Recurrent states have one size; residuals, keys and values grow with the text.
    """
    few, more = (_states_bytes_of(runner, rows, device) for rows in (4, 8))
    each = (more - few) // 4
    return few - 4 * each, each


def _states_bytes_of(runner: BlockRunner, rows: int, device: torch.device) -> int:
    none = torch.zeros(rows, dtype=torch.long, device=device)
    layers = run_baseline(runner, none, none.bool()).layers
    return bytes_held(t for layer in layers for t in layer.tensors())


def unpatched(n_layers: int) -> Program:
    """The program that changes nothing."""
    return Program((), {}, {}, None, {}, "", ("",) * n_layers, ("",) * n_layers)
