"""Hop 0: the exact components of a number that is read from the residual stream.

With norms frozen, ``vector·stream`` is the sum of what the embedding, every head at every position it reads,
every MLP and every bias wrote: algorithm A of direct logit attribution (Elhage et al. 2021).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from msgspec.structs import replace
from torch import Tensor

from microscope.graphs import Component
from microscope.provenance.cuts import Explained
from microscope.provenance.passes import BlockPass, PromptPass

# Components that are listed one by one.
MOST_LISTED = 200


def components(held: PromptPass, e: Explained) -> tuple[list[Component], float]:
    """What a number is made of, largest first, and how much of it they sum to: 1 up to rounding.

    Args:
        held: the prompt.
        e: the number.
    """
    stream, found = _at_stream(held, e)
    below = e.site.layer if e.site.kind in ("mlp_out", "resid_mid", "attn_out") else e.site.layer + 1
    for layer in range(below):
        found += _of_block(held.frozen(layer, layer).blocks[layer], stream)
    found += [
        Component(kind="embedding", attribution=float(share), position=position)
        for position, share in enumerate((stream * held.embedded).sum(1))
        if float(share)
    ]
    total, wanted = sum(c.attribution for c in found), e.value - e.constant
    found = sorted(found, key=lambda c: -abs(c.attribution))
    kept = found[:MOST_LISTED]
    if len(found) > MOST_LISTED:
        rest = sum(c.attribution for c in found[MOST_LISTED:])
        kept.append(Component(kind="other", attribution=rest))
    return [replace(c, side=e.side) for c in kept], total / wanted if wanted else 1.0


def _at_stream(held: PromptPass, e: Explained) -> tuple[Tensor, list[Component]]:
    """The number's gradient at the stream it is read from ``[positions, d]``, and what lies behind that already.

    A number that is read from what a half adds is traced through that half first.
    """
    site = e.site
    width = held.embedded.shape[1]
    stream = torch.zeros(len(held.tokens), width, device=held.embedded.device)
    if site.kind == "resid_post":
        stream[e.position] = e.vector
        return stream, []
    block = held.frozen(site.layer, site.layer).blocks[site.layer]
    if site.kind == "resid_mid":
        stream[e.position] = e.vector
        return stream, _attention(block, stream)
    scalar = block.sites[site.kind][0, e.position] @ e.vector
    middle = block.sites.get("resid_mid") if site.kind == "mlp_out" else None
    source = block.x if middle is None or not middle.requires_grad else middle
    leaves = list(block.biases.values())
    gradient, *at_biases = torch.autograd.grad(
        scalar, [source, *leaves], retain_graph=True, allow_unused=True
    )
    bias = sum(float((g * b.detach()).sum()) for g, b in zip(at_biases, leaves, strict=True) if g is not None)
    found = [Component(kind="bias", attribution=bias, layer=site.layer)] if bias else []
    if gradient is not None:
        stream = gradient[0]
    return stream, found + (_attention(block, stream) if source is not block.x else [])


def _of_block(block: BlockPass, stream: Tensor) -> Iterator[Component]:
    """What a block wrote along the gradient ``[positions, d]``."""
    yield from _attention(block, stream)
    known = torch.zeros_like(block.out)
    for kind in ("attn_out", "mlp_out"):
        if kind in block.sites:
            known = known + block.sites[kind].detach()
    if "mlp_out" in block.sites:
        share = float((block.sites["mlp_out"].detach()[0] * stream).sum())
        yield Component(kind="mlp", attribution=share, layer=block.layer)
    rest = block.out.detach() - block.x.detach() - known
    if float(rest.norm()) > 1e-4 * float((block.out - block.x).detach().norm()):
        yield Component(kind="block", attribution=float((rest[0] * stream).sum()), layer=block.layer)


def _attention(block: BlockPass, stream: Tensor) -> list[Component]:
    """Heads by the position they read, and the bias of their output; the whole where heads cannot be told apart."""
    written = block.sites.get("attn_out")
    if written is None:
        return []
    total = float((written.detach()[0] * stream).sum())
    attention = block.attention
    if attention is None:
        return [Component(kind="attention", attribution=total, layer=block.layer)]
    gradient: Tensor | None = torch.autograd.grad(
        (written[0] * stream).sum(), attention.out, retain_graph=True, allow_unused=True
    )[0]
    if gradient is None:
        return [Component(kind="attention", attribution=total, layer=block.layer)]
    value = attention.value.detach()[0]
    shared = gradient.shape[1] // value.shape[0]
    value = value.repeat_interleave(shared, 0) if shared > 1 else value
    # [heads, queries, keys], then over queries.
    shares = ((gradient[0] @ value.transpose(1, 2)) * attention.pattern[0]).sum(1)
    found = [
        Component(kind="head", attribution=share, layer=block.layer, head=head, position=position)
        for head, row in enumerate(shares.tolist())
        for position, share in enumerate(row)
        if share
    ]
    rest = total - float(shares.sum())
    if abs(rest) > 1e-5 * (abs(total) + float(shares.abs().sum())):
        found.append(Component(kind="bias", attribution=rest, layer=block.layer))
    return found
