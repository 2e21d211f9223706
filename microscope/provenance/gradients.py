"""Gradients of several numbers of a frozen pass at once, and the same by the head or MLP they first pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microscope.graphs import Part, PartKind
from microscope.params import Site
from microscope.provenance.cuts import Explained
from microscope.provenance.passes import BlockPass, Frozen, order

# What is left of a sum by rounding alone, relative to it.
_ROUNDING = 1e-4
# Parts of an edge from this share of all their sizes on are listed one by one.
_LISTED = 0.01
# Bytes that the gradients of one backward pass may take, unless those of a single number take more.
MOST_BYTES = 512 * 2**20
# Streams ``[positions, d]`` per block and number beside one for each head.
_STREAMS = 6


@dataclass(frozen=True)
class Passage:
    """One head or MLP behind a leaf: what passes through it first, as gradients at the stream it reads.

    ``gradient`` is ``[positions, d]``: times a contribution to the stream at some position, it gives the share of
    that contribution that this head or MLP reads. ``reads`` is where along the stream, as :func:`order` counts.
    """

    kind: PartKind
    layer: int
    head: int | None
    gradient: Tensor
    reads: float


@dataclass
class Gradients:
    """Those of one explained number: at the leaves, ``[positions, width]``, and at the stream around blocks.

    ``modules`` is what biases of the blocks' modules contribute.
    """

    explained: Explained
    at_leaf: Mapping[Site, Tensor]
    passages: Sequence[Passage] = ()
    modules: float = 0.0
    direct: Mapping[Site, Tensor] = field(default_factory=dict)

    def parts(self, leaf: Site, positions: Sequence[int], contribution: Tensor) -> tuple[Part, ...]:
        """An edge by what it passes, largest first; small ones are summed as ``other``.

        Args:
            leaf: where the parent is.
            positions: rows of its contribution.
            contribution: what it adds there, ``[rows, width]``.
        """
        rows = list(positions)
        found = []
        direct = self.direct.get(leaf)
        if direct is not None:
            found.append(Part(kind="direct", attribution=_dot(contribution, direct[rows])))
        for passage in self.passages:
            if order(leaf) > passage.reads:  # it reads the stream in front of what the leaf adds
                continue
            share = _dot(contribution, passage.gradient[rows])
            found.append(Part(kind=passage.kind, attribution=share, layer=passage.layer, head=passage.head))
        return _listed(found)


def _listed(found: Sequence[Part]) -> tuple[Part, ...]:
    least = _LISTED * sum(abs(part.attribution) for part in found)
    kept = sorted((p for p in found if abs(p.attribution) > least), key=lambda p: -abs(p.attribution))
    other = sum(p.attribution for p in found if abs(p.attribution) <= least)
    return (*kept, Part(kind="other", attribution=other)) if other else tuple(kept)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())


def bytes_of_one(blocks: int, positions: int, heads: int, width: int) -> int:
    """What :func:`gradients` holds for one number, in bytes.

    Args:
        blocks: of the frozen pass.
        positions: tokens of the prompt.
        heads: of a block.
        width: of the stream.
    """
    return 4 * blocks * positions * (heads + _STREAMS) * width


def numbers_at_once(blocks: int, positions: int, heads: int, width: int) -> int:
    """How many numbers one call of :func:`gradients` may be given; the arguments are those of :func:`bytes_of_one`."""
    return max(1, MOST_BYTES // max(1, bytes_of_one(blocks, positions, heads, width)))


def gradients(frozen: Frozen, explained: Sequence[Explained]) -> list[Gradients]:
    """One backward pass for several numbers.

    Args:
        frozen: a pass whose leaves the numbers depend on.
        explained: what to explain, each at a site that the pass ran.
    """
    if not explained:
        return []
    scalars = torch.stack([_read(frozen, e)[0, e.position] @ e.vector for e in explained])
    top = max(e.site.layer for e in explained)
    blocks = [block for layer, block in sorted(frozen.blocks.items()) if layer <= top]
    leaves = list(frozen.leaves.items())
    inputs: list[Tensor] = [leaf for _, leaf in leaves]
    watched: list[Tensor] = []
    for block in blocks:
        watched += [block.x, block.out, *_middle(block)]
        if block.attention is not None:
            watched.append(block.attention.out)
        watched += block.biases.values()
    found = _batched(scalars, [*inputs, *watched])
    by_tensor = {id(t): g for t, g in zip([*inputs, *watched], found, strict=True)}
    heads = {
        block.layer: _by_heads(block, by_tensor[id(block.attention.out)])
        for block in blocks
        if block.attention
    }
    result = []
    for row, e in enumerate(explained):

        def at(t: Tensor, row: int = row) -> Tensor:
            return by_tensor[id(t)][row, 0]

        passages = [
            passage
            for block in blocks
            if block.layer <= e.site.layer
            for passage in _passages(
                block, at, None if block.layer not in heads else heads[block.layer][row], e.site
            )
        ]
        modules = sum(
            float((by_tensor[id(b)][row] * b.detach()).sum())
            for block in blocks
            for b in block.biases.values()
        )
        result.append(
            Gradients(e, {site: at(leaf) for site, leaf in leaves}, passages, modules, _direct(frozen, e))
        )
    return result


def _batched(scalars: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Gradients ``[numbers, …]`` of each scalar at each input; zeros where one does not depend on it."""
    eye = torch.eye(len(scalars), device=scalars.device)
    if len(scalars) == 1:
        found = torch.autograd.grad(scalars, inputs, eye[0], retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(t)[None] if g is None else g[None] for t, g in zip(inputs, found, strict=True)
        ]
    try:
        found = torch.autograd.grad(
            scalars, inputs, eye, retain_graph=True, allow_unused=True, is_grads_batched=True
        )
        return [
            t.new_zeros((len(scalars), *t.shape)) if g is None else g
            for t, g in zip(inputs, found, strict=True)
        ]
    except RuntimeError:  # an operation of this model's blocks cannot be batched
        each = [_batched(scalars[i : i + 1], inputs) for i in range(len(scalars))]
        return [torch.cat(parts) for parts in zip(*each, strict=True)]


def _middle(block: BlockPass) -> list[Tensor]:
    """The stream between attention and MLP, where it is on the way."""
    found = block.sites.get("resid_mid")
    return [] if found is None or not found.requires_grad else [found]


def _by_heads(block: BlockPass, gradient: Tensor) -> Tensor:
    """Gradients at the block's input through each head's values, ``[numbers, heads, positions, d]``.

    Args:
        gradient: at the heads' outputs, ``[numbers, 1, heads, positions, head_dim]``.
    """
    attention = block.attention
    assert attention is not None
    numbers, _, heads, *_ = gradient.shape
    alone = torch.zeros((heads, *gradient.shape), device=gradient.device)
    for head in range(heads):
        alone[head, :, :, head] = gradient[:, :, head]
    found: Tensor | None = torch.autograd.grad(
        attention.out,
        block.x,
        alone.flatten(0, 1),
        retain_graph=True,
        allow_unused=True,
        is_grads_batched=True,
    )[0]
    if found is None:
        return torch.zeros((numbers, heads, *block.x.shape[1:]), device=gradient.device)
    return found[:, 0].unflatten(0, (heads, numbers)).transpose(0, 1)


def _passages(
    block: BlockPass, at: Callable[[Tensor], Tensor], heads: Tensor | None, read: Site
) -> Iterator[Passage]:
    """What a block's heads ``[heads, positions, d]`` and MLP pass on of the stream to what is read at a site."""
    layer, middle = block.layer, _middle(block)
    through = at(block.x) - at(middle[0] if middle else block.out)
    if middle and not (read.layer == layer and read.kind == "resid_mid"):
        yield Passage("mlp", layer, None, at(middle[0]) - at(block.out), layer + 0.5)
    if heads is None:
        yield Passage("block", layer, None, through, layer)
        return
    for head, gradient in enumerate(heads):
        yield Passage("head", layer, head, gradient, layer)
    rest = through - heads.sum(0)
    if float(rest.norm()) > _ROUNDING * float(through.norm()):
        # Where both halves read the same stream, what no head reads is the MLP's.
        yield Passage("block" if middle or "mlp_out" not in block.sites else "mlp", layer, None, rest, layer)


def _read(frozen: Frozen, e: Explained) -> Tensor:
    """The activation that a number reads, ``[1, positions, width]``."""
    return frozen.leaves[e.site] if e.behind and e.site in frozen.leaves else frozen.at(e.site)


def _direct(frozen: Frozen, e: Explained) -> dict[Site, Tensor]:
    """Gradients along the stream alone, at the leaves that write to it between the last cut and the number's site."""
    if e.site.kind not in ("resid_post", "resid_mid"):
        return {}
    cuts = [site for site in frozen.leaves if site.kind == "resid_post" and e.is_above(site)]
    found: dict[Site, Tensor] = {}
    for site, leaf in frozen.leaves.items():
        if cuts and e.is_above(site) and max(map(order, cuts)) <= order(site):
            found[site] = torch.zeros(leaf.shape[1:], device=leaf.device)
            found[site][e.position] = e.vector
    return found
