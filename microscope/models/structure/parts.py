"""What a block adds to the residual stream, found by running it: which modules' outputs make up its sum.

A block turns x into y. If two of its modules put out A and B with ``y = x + a·A + b·B``, these are its halves:
the one whose rows depend on other rows is its attention (or a recurrent mixer in its place), the other its MLP.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models.families import Parts, Tap
from microscope.models.own_blocks import Call, OwnBlocks
from microscope.models.plain_pass import deviation
from microscope.models.stream import first_tensor
from microscope.params.sites import SiteKind

# What may be left over of a row: shares of what the block adds to it, and of the row itself, which is rounded.
_LEFT_OVER = {torch.float32: (1e-4, 1e-6), torch.bfloat16: (2e-2, 6e-3), torch.float16: (5e-3, 1e-3)}
# How far rows may differ, relative to their length, that were computed beside other ones.
_BESIDE_OTHERS = {torch.float32: 1e-4}
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
    x, y = _flat(call.x.to(out.device)), _flat(out)  # blocks may be spread over devices
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
    between = _between(ran, x, y, found) if len(found.terms) == 2 else None
    mixing = _mixing(own, call, found)
    attention = next((i for i, mixes in enumerate(mixing) if mixes), None)
    mlp = next((i for i in range(len(found.terms)) if i != attention), None)
    return _named(ran, found, between, attention, mlp)


@torch.inference_mode()
def adds_up(own: OwnBlocks, call: Call, parts: Parts) -> bool:
    """Whether a block's output is its input plus what the declared modules put out, rounding apart."""
    ran, out = _watched(own, call, call.x)
    x = call.x.to(out.device)
    total = x
    for path, scale in ((parts.attention, parts.attention_scale), (parts.mlp, parts.mlp_scale)):
        wrote = next((r.wrote for r in ran if r.path == path), None)
        if path is None:
            continue
        if wrote is None or wrote.numel() != total.numel():
            return False
        total = total + scale * wrote.view(total.shape)
    left = (total.double() - out.double()).norm(dim=-1)
    return bool((left <= _allowed(x, out)).all())


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


def _allowed(x: Tensor, y: Tensor) -> Tensor:
    """What may be left over of each row, for a block that turns ``x`` into ``y``, both ``[…, d]``.

    Row by row, since a few rows of a stream are hundreds of times longer than the others.
    """
    of_added, of_row = _LEFT_OVER.get(x.dtype, (1e-4, 1e-6))
    longer = x.double().norm(dim=-1).maximum(y.double().norm(dim=-1))
    return (of_added * (y.double() - x.double()).norm(dim=-1) + of_row * longer).clamp_min(1e-30)


def _sum_of(ran: list[Ran], x: Tensor, y: Tensor, multipliers: tuple[float, ...]) -> _Sum | None:
    """The fewest modules whose outputs add up to ``y``: to the bit if there are any, or but for rounding.

    In half precision what a half adds may be no more than what rounding may leave over. So of one module or two
    those are taken that add up to the bit, or that leave clearly less over.
    """
    candidates = _distinct(term for term in ran if term.wrote is not None and term.wrote.shape == x.shape)
    finished = {id(term): number for number, term in enumerate(ran)}
    candidates.sort(key=lambda term: finished[id(term)])
    weight = 1 / _allowed(x, y)[:, None]
    outputs = [term.wrote.double() * weight for term in candidates]  # type: ignore[union-attr]
    added = (y.double() - x.double()) * weight
    columns = torch.stack([*(output.reshape(-1) for output in outputs), added.reshape(-1)])
    products = columns @ columns.T
    best, least = None, float("inf")
    for count in (1, 2, 3):
        for terms in combinations(range(len(candidates)), count):
            for factors in _factors(products, terms, multipliers):
                weights = torch.tensor([*factors, -1.0], dtype=products.dtype, device=products.device)
                chosen = [*terms, -1]
                left = float(weights @ products[chosen][:, chosen] @ weights)
                if left > 1.01 * len(x):
                    continue
                total = sum((f * outputs[i] for f, i in zip(factors, terms, strict=True)), -added)
                if float(total.norm(dim=-1).max()) > 1:
                    continue
                found = _Sum(tuple(candidates[i] for i in terms), factors)
                if _to_the_bit(found, x, y):
                    return found
                # Fitted factors leave a little less over than those they are meant to be.
                if left < least / 4 and (best is None or best.terms != found.terms):
                    best, least = found, left
        if best is not None and count >= 2:
            break
    return best


def _to_the_bit(found: _Sum, x: Tensor, y: Tensor) -> bool:
    """Whether outputs times factors, added to the stream in one of the usual orders, are exactly ``y``."""
    parts = [
        term.wrote if factor == 1 else factor * term.wrote
        for term, factor in zip(found.terms, found.factors, strict=True)
        if term.wrote is not None
    ]
    orders = ([x, *parts], [x, *reversed(parts)], [*parts, x])
    return any(_equal(reduce(torch.add, order), y) for order in orders)


def _factors(
    products: Tensor, terms: tuple[int, ...], multipliers: tuple[float, ...]
) -> Iterator[tuple[float, ...]]:
    """Factors to try: none, then the best ones, which are a multiplier of the configuration where they are near it.

    Args:
        products: scalar products of all outputs and, last, of what is added.
        terms: which outputs.
        multipliers: numbers of the configuration.
    """
    yield (1.0,) * len(terms)
    chosen = list(terms)
    gram = products[chosen][:, chosen]
    if float(torch.linalg.matrix_rank(gram)) < len(terms):
        return
    best = torch.linalg.solve(gram, products[chosen, -1]).tolist()
    if all(abs(factor) > 1e-6 for factor in best):
        yield tuple(next((m for m in multipliers if abs(f - m) <= 0.01 * abs(m)), f) for f in best)


def _distinct(terms: Iterable[Ran]) -> list[Ran]:
    """Of modules with the same output the outermost, and of those the first."""
    kept: list[Ran] = []
    for term in sorted(terms, key=lambda t: t.path.count(".")):
        if not any(_equal(term.wrote, other.wrote) for other in kept):
            kept.append(term)
    return kept


def _between(ran: list[Ran], x: Tensor, y: Tensor, found: _Sum) -> Tap | None:
    """Where a module reads the stream with one half added and not yet the other."""
    allowed = _allowed(x, y)

    def apart(a: Tensor, b: Tensor) -> float:
        return float(((a.double() - b.double()).norm(dim=-1) / allowed).max())

    readers = [r for r in ran if r.read is not None and r.read.shape == x.shape]
    for term, factor in zip(found.terms, found.factors, strict=True):
        assert term.wrote is not None
        middle = x + (term.wrote if factor == 1 else factor * term.wrote).to(x.dtype)
        near = [r for r in readers if _equal(r.read, middle) and not _equal(r.read, x)]
        # Where the sum is rounded otherwise, it must be told from the stream before it by more than rounding.
        if not near and apart(middle, x) > 10:
            near = [r for r in readers if r.read is not None and apart(r.read, middle) <= 1]
        if near:
            return Tap(min(near, key=lambda r: r.path.count(".")).path, "input")
    return None


def _mixing(own: OwnBlocks, call: Call, found: _Sum) -> list[bool]:
    """Of each term, whether its later rows change with the first row of the block's input alone.

    Where halves run one after the other the second changes with the first, so the first that does is the mixer.
    Experts round a row otherwise when other rows are theirs: that is no change.
    """
    changed = call.x.clone()
    changed[:, 0] = changed[:, 0].flip(-1) * 1.5
    again = {other.path: other.wrote for other in _watched(own, call, changed)[0]}
    limit = _BESIDE_OTHERS.get(call.x.dtype, 2e-2)
    return [_moved(term.wrote, again.get(term.path)) > limit for term in found.terms]


def _moved(before: Tensor | None, after: Tensor | None) -> float:
    """How far the rows behind the first moved, relative to their length."""
    assert before is not None
    return float("inf") if after is None else deviation(after[1:], before[1:])


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
