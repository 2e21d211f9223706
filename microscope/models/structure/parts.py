"""What a block adds to the residual stream, found by running it: which modules' outputs make up its sum.

A block turns x into y. If two of its modules put out A and B with ``y = x + a·A + b·B``, these are its halves:
the one whose rows depend on other rows is its attention (or a recurrent mixer in its place), the other its MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models.families import Parts, Tap
from microscope.models.own_blocks import Call, OwnBlocks
from microscope.models.plain_pass import TOLERANCE, deviation
from microscope.models.stream import first_tensor
from microscope.params.sites import SiteKind

# What may be left over, relative to what the block adds; the second for streams in half precision.
_LEFT_OVER, _LEFT_OVER_HALF = 1e-4, 2e-2
_PARALLEL = "attention and MLP run in parallel"


class Ran(NamedTuple):
    """One module's run: its path in the block, input and output as ``[rows, width]`` where they are such."""

    path: str
    module: nn.Module
    read: Tensor | None
    wrote: Tensor | None


@dataclass(frozen=True)
class _Sum:
    """Modules, in the order in which they ran, whose outputs, times factors, are what a block adds."""

    terms: tuple[Ran, ...]
    factors: tuple[float, ...]


@torch.inference_mode()
def find_parts(own: OwnBlocks, call: Call, multipliers: Iterable[float] = ()) -> Parts:
    """The modules of one block.

    Args:
        own: the model's blocks.
        call: arguments of the block in a pass without cache.
        multipliers: numbers of the configuration that what is added may be multiplied by.
    """
    ran, out = _watched(own, call, call.x)
    x, y = _flat(call.x), _flat(out)
    assert x is not None
    assert y is not None
    found = _sum_of(ran, x, y, tuple(multipliers))
    if found is None:
        reason = "no two of its modules' outputs add up to what the block adds to the stream"
        return Parts(adds_up=False, missing=dict.fromkeys(_INNER, reason))
    if len(found.terms) > 2:
        reason = (
            f"the block adds {len(found.terms)} things to the stream, not one of attention and one of an MLP"
        )
        return Parts(adds_up=False, missing=dict.fromkeys(_INNER, reason))
    between = _between(ran, x, found) if len(found.terms) == 2 else None
    mixing = _mixing(own, call, found)
    attention = next((i for i, mixes in enumerate(mixing) if mixes), None)
    mlp = next((i for i in range(len(found.terms)) if i != attention), None)
    return _named(ran, found, between, attention, mlp)


@torch.inference_mode()
def adds_up(own: OwnBlocks, call: Call, parts: Parts) -> bool:
    """Whether a block's output is its input plus what the declared modules put out, rounding apart."""
    ran, out = _watched(own, call, call.x)
    total = call.x
    for path, scale in ((parts.attention, parts.attention_scale), (parts.mlp, parts.mlp_scale)):
        wrote = next((r.wrote for r in ran if r.path == path), None)
        if path is None:
            continue
        if wrote is None or wrote.numel() != total.numel():
            return False
        total = total + scale * wrote.view(total.shape)
    return deviation(total, out, call.x) <= TOLERANCE.get(out.dtype, 1e-4)


_INNER: tuple[SiteKind, ...] = ("resid_mid", "attn_out", "mlp_out", "attn_z", "mlp_act")


def _named(ran: list[Ran], found: _Sum, between: Tap | None, attention: int | None, mlp: int | None) -> Parts:
    missing: dict[SiteKind, str] = {}
    paths: dict[str, str | None] = {}
    scales: dict[str, float] = {}
    halves: tuple[tuple[int | None, str, SiteKind, SiteKind, str], ...] = (
        (attention, "attention", "attn_out", "attn_z", "the block has an MLP only"),
        (mlp, "mlp", "mlp_out", "mlp_act", "the block has no MLP"),
    )
    for number, name, whole, inner, reason in halves:
        if number is None:
            missing |= {whole: reason, inner: reason}
            continue
        term = found.terms[number]
        paths[name], scales[f"{name}_scale"] = term.path, found.factors[number]
        projection = _projection(ran, term)
        paths[f"{name}_projection"] = projection
        if projection is None:
            missing[inner] = "no single matrix writes what is added" + (
                "; it is made of experts" if _has_experts(term.module) else ""
            )
    if between is None:
        alone = attention is None or mlp is None
        missing["resid_mid"] = "the block has one half only" if alone else _PARALLEL
    return Parts(**paths, **scales, between=between, missing=missing)  # type: ignore[arg-type]


def _watched(own: OwnBlocks, call: Call, x: Tensor) -> tuple[list[Ran], Tensor]:
    """Run a block and note what its modules read and wrote, in the order in which they finished."""
    ran: list[Ran] = []

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            read = args[0] if args else kwargs.get("hidden_states")
            wrote = output[0] if isinstance(output, (tuple, list)) and output else output
            ran.append(Ran(path, module, _flat(read), _flat(wrote)))

        return hook

    modules = [(path, module) for path, module in own.blocks[call.layer].named_modules() if path]
    handles = [module.register_forward_hook(watch(path), with_kwargs=True) for path, module in modules]
    try:
        out = first_tensor(own.run(call, x))
    finally:
        for handle in handles:
            handle.remove()
    return ran, out


def _flat(value: Any) -> Tensor | None:
    """As ``[rows, width]`` copied, since blocks may add in place; None for what is no tensor of numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    return value.detach().reshape(-1, value.shape[-1]).clone()


def _sum_of(ran: list[Ran], x: Tensor, y: Tensor, multipliers: tuple[float, ...]) -> _Sum | None:
    """The fewest modules whose outputs add up to ``y − x``."""
    candidates = _distinct(term for term in ran if term.wrote is not None and term.wrote.shape == x.shape)
    added = y.double() - x.double()
    limit = (_LEFT_OVER if x.dtype == torch.float32 else _LEFT_OVER_HALF) * float(added.norm())
    outputs = {id(term): term.wrote.double() for term in candidates}  # type: ignore[union-attr]
    for count in (1, 2, 3):
        for terms in combinations(candidates, count):
            for factors in _factors([outputs[id(term)] for term in terms], added, multipliers):
                total = sum((f * outputs[id(t)] for f, t in zip(factors, terms, strict=True)), -added)
                if float(total.norm()) <= limit:
                    finished = {id(term): number for number, term in enumerate(ran)}
                    order = sorted(range(count), key=lambda i: finished[id(terms[i])])
                    return _Sum(tuple(terms[i] for i in order), tuple(factors[i] for i in order))
    return None


def _factors(
    terms: list[Tensor], added: Tensor, multipliers: tuple[float, ...]
) -> Iterator[tuple[float, ...]]:
    """Factors to try: none, then the best ones, which are a multiplier of the configuration where they are near it."""
    yield (1.0,) * len(terms)
    columns = torch.stack([term.reshape(-1) for term in terms], 1)
    gram = columns.T @ columns
    if float(torch.linalg.matrix_rank(gram)) < len(terms):
        return
    best = torch.linalg.solve(gram, columns.T @ added.reshape(-1)).tolist()
    if all(abs(factor) > 1e-6 for factor in best):
        yield tuple(next((m for m in multipliers if abs(f - m) <= 0.01 * abs(m)), f) for f in best)


def _distinct(terms: Iterable[Ran]) -> list[Ran]:
    """Of modules with the same output the outermost, and of those the first."""
    kept: list[Ran] = []
    for term in sorted(terms, key=lambda t: t.path.count(".")):
        if not any(_equal(term.wrote, other.wrote) for other in kept):
            kept.append(term)
    return kept


def _between(ran: list[Ran], x: Tensor, found: _Sum) -> Tap | None:
    """Where a module reads the stream with one half added and not yet the other."""
    limit = (_LEFT_OVER if x.dtype == torch.float32 else _LEFT_OVER_HALF) * float(x.double().norm())
    readers = [r for r in ran if r.read is not None and r.read.shape == x.shape]
    for term, factor in zip(found.terms, found.factors, strict=True):
        assert term.wrote is not None
        middle = x + (term.wrote if factor == 1 else factor * term.wrote).to(x.dtype)
        near = [r for r in readers if _equal(r.read, middle) and not _equal(r.read, x)]
        # Where the sum is rounded otherwise, it must be told from the stream before it by more than rounding.
        if not near and float((middle.double() - x.double()).norm()) > 10 * limit:
            near = [r for r in readers if float((r.read.double() - middle.double()).norm()) <= limit]  # type: ignore[union-attr]
        if near:
            return Tap(min(near, key=lambda r: r.path.count(".")).path, "input")
    return None


def _mixing(own: OwnBlocks, call: Call, found: _Sum) -> list[bool]:
    """Of each term, whether its later rows change with the first row of the block's input alone.

    Where halves run one after the other the second changes with the first, so the first that does is the mixer.
    """
    changed = call.x.clone()
    changed[:, 0] = changed[:, 0].flip(-1) * 1.5
    again = {other.path: other.wrote for other in _watched(own, call, changed)[0]}
    return [
        term.wrote is not None and not _equal(term.wrote[1:], _rows_behind_first(again.get(term.path)))
        for term in found.terms
    ]


def _rows_behind_first(wrote: Tensor | None) -> Tensor | None:
    return None if wrote is None else wrote[1:]


def _projection(ran: list[Ran], term: Ran) -> str | None:
    """The matrix whose output a half writes, as it is or behind a norm."""
    for wanted in (term.wrote, term.read):
        for other in reversed(ran):
            if _is_matrix(other.module) and _equal(other.wrote, wanted):
                return other.path
    return None


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(module, (nn.Linear, Conv1D)) and isinstance(weight, Tensor)


def _has_experts(module: nn.Module) -> bool:
    return any("expert" in name for name, _ in module.named_modules())


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and bool(torch.equal(a, b))
