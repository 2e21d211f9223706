"""Why one head attends from one position to another: its score by what is at the query and what is at the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from msgspec.structs import replace
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import Attended, AttendedPair, Contributor
from microscope.models import LoadedModel
from microscope.params import Site
from microscope.provenance.cuts import Cut
from microscope.provenance.passes import BlockPass, PromptPass
from microscope.provenance.targets import place, require_layer, score_operands
from microscope.sae import SparseAutoencoder

# What is left of a score by rounding alone, relative to the sizes of its query and key.
_ROUNDING = 1e-5
# Bytes that derivatives may take at once, unless a single one takes more.
MOST_BYTES = 256 * 2**20
# What reaches a query from other positions than its own, relative, before it counts as depending on them.
_ELSEWHERE = 1e-4


@dataclass(frozen=True)
class _Written:
    """One contributor to the stream at a position: what it adds there, ``[d]``."""

    who: Contributor
    vector: Tensor


def attended(
    loaded: LoadedModel,
    tokens: Sequence[int],
    layer: int,
    head: int,
    query: int,
    key: int,
    saes: Mapping[str, SparseAutoencoder] | None = None,
    top: int = 20,
    *,
    held: PromptPass | None = None,
) -> Attended:
    """Split one attention score over pairs of what is at the query and what is at the key.

    With norms held, the query is ``M_q·x + b_q`` and the key ``M_k·y + b_k`` in the streams that the block reads at
    the two positions, rotary embedding included, and the score is ``scale·query·key`` and what is added by
    distance. The streams are split into the features, the error and the constant of an SAE that writes exactly
    there, ``resid_post`` of the block below; otherwise into what every head, MLP and bias below wrote, and the embedding.
    Those beyond the ``top`` that matter most are one contributor, ``other``, so that all sums hold.

    Args:
        loaded: the model.
        tokens: ids of the prompt.
        layer, head: which head; heads are those of queries.
        query, key: positions; −1 is the last.
        saes: by fingerprint.
        top: contributors told apart at each end, besides biases.
        held: the prompt's pass, where one is at hand.

    Raises:
        MicroscopeError: ``no_such_position``, ``layer_out_of_range``, ``no_such_head``, ``not_visible`` or
            ``scores_unknown``.
    """
    held = held or PromptPass(loaded, tokens)
    require_layer(layer, loaded.n_layers)
    query, key = (place(position, len(held.tokens)) for position in (query, key))
    block = held.frozen(layer, layer).blocks[layer]
    q, k, scale = score_operands(block, head, query, key)
    attention = block.attention
    assert attention is not None
    assert attention.scores is not None
    cut = _cut(held, saes or {}, layer)
    at_query, at_key = _at_ends(held, block, [(q, query), (k, key)], cut)
    # [contributors at the query, contributors at the key]
    pairs = scale * torch.stack([w.vector for w in at_query]) @ torch.stack([w.vector for w in at_key]).T
    bilinear = scale * float((q @ k).detach())
    pairs, queries = _largest(pairs, at_query, top)
    turned, keys = _largest(pairs.T, at_key, top)
    pairs = turned.T
    score = float(attention.scores[0, head, query, key])
    by_distance = score - bilinear
    if abs(by_distance) <= _ROUNDING * (scale * float(q.detach().norm() * k.detach().norm()) + abs(score)):
        by_distance = 0.0
    order = pairs.abs().flatten().argsort(descending=True, stable=True).tolist()
    return Attended(
        layer=layer,
        head=head,
        query=query,
        key=key,
        score=score,
        weight=float(attention.pattern[0, head, query, key]),
        bilinear=bilinear,
        position_term=by_distance,
        query_contributors=_with_marginals(queries, pairs.sum(1)),
        key_contributors=_with_marginals(keys, pairs.sum(0)),
        pairs=tuple(
            AttendedPair(query=n // len(keys), key=n % len(keys), attribution=float(pairs.flatten()[n]))
            for n in order
        ),
    )


def _with_marginals(found: Sequence[Contributor], sums: Tensor) -> tuple[Contributor, ...]:
    return tuple(replace(who, attribution=float(s)) for who, s in zip(found, sums, strict=True))


def _largest(pairs: Tensor, written: Sequence[_Written], top: int) -> tuple[Tensor, list[Contributor]]:
    """The rows of pairs that matter most, largest first, biases last but one, and the sum of all others.

    A row matters by its sum or its largest pair, whichever is larger.
    """
    size = torch.maximum(pairs.sum(1).abs(), pairs.abs().amax(1))
    order = size.argsort(descending=True, stable=True).tolist()
    listed = [n for n in order if written[n].who.kind != "bias"]
    kept = listed[:top] + [n for n in order if written[n].who.kind == "bias"]
    rows, found = [pairs[kept]], [written[n].who for n in kept]
    if len(listed) > top:
        rows.append(pairs[listed[top:]].sum(0, keepdim=True))
        found.append(Contributor(kind="other", attribution=0.0))
    return torch.cat(rows), found


def _cut(held: PromptPass, saes: Mapping[str, SparseAutoencoder], layer: int) -> Cut | None:
    """The SAE that reads and writes what the block reads, with the prompt's activations."""
    below = str(Site("resid_post", layer - 1))
    for name, sae in saes.items():
        if sae.config.site == below and not sae.config.is_transcoder:
            sae.check_width(held.embedded)
            ids = set(held.loaded.tokenizer.all_special_ids)
            special = torch.tensor([t in ids for t in held.tokens], device=held.embedded.device)
            cut, x = Cut(name, sae, special), held.input_of(layer)
            with torch.no_grad():
                cut.fill(x, x)
            return cut
    return None


def _at_ends(
    held: PromptPass, block: BlockPass, ends: Sequence[tuple[Tensor, int]], cut: Cut | None
) -> list[list[_Written]]:
    """Everything at each end, as it enters the query or key ``[head_dim]``; all of it sums to the end.

    Raises:
        MicroscopeError: ``scores_unknown`` where other positions' streams enter, too.
    """
    read = [(_matrix(block, end, position), position) for end, position in ends]
    found: list[list[_Written]] = [[] for _ in ends]
    for written, (matrix, position) in zip(found, read, strict=True):
        if cut is not None:
            written += _features(cut, matrix, position)
        else:
            who = Contributor(kind="embedding", attribution=0.0)
            written.append(_Written(who, matrix @ held.embedded[position]))
    for layer in range(block.layer if cut is None else 0):
        below = held.frozen(layer, layer).blocks[layer]
        heads = _heads(below, [position for _, position in read])
        for number, (written, (matrix, position)) in enumerate(zip(found, read, strict=True)):
            written += _of_block(below, matrix, position, None if heads is None else heads[number])
    for written, (matrix, position), (end, _) in zip(found, read, ends, strict=True):
        rest = end.detach() - matrix @ block.x.detach()[0, position]
        if float(rest.norm()) > _ROUNDING * float(end.detach().norm()):
            written.append(_Written(Contributor(kind="bias", attribution=0.0, layer=block.layer), rest))
    return found


def _matrix(block: BlockPass, end: Tensor, position: int) -> Tensor:
    """What a query or key makes of the stream at its position, ``[head_dim, d]``."""
    stream = block.x.detach()[0]
    each, sums = [], []
    for numbers in end.split(_at_once(block.x)):
        everywhere = _jacobian(numbers, block.x)[:, 0]  # [numbers, positions, d]
        each.append(everywhere[:, position].clone())
        sums.append((everywhere * stream).sum((1, 2)))
    here = torch.cat(each)
    elsewhere = torch.cat(sums) - here @ stream[position]
    if float(elsewhere.norm()) > _ELSEWHERE * float(end.detach().norm()):
        raise MicroscopeError(
            "scores_unknown",
            f"Queries and keys of block {block.layer} depend on other positions than their own.",
            "Choose a block with plain attention.",
        )
    return here


def _features(cut: Cut, matrix: Tensor, position: int) -> Iterator[_Written]:
    """An SAE's latents at a position, what they leave over, and its constant."""
    layer = cut.writes.layer
    for value, index in zip(
        cut.codes.values[position].tolist(), cut.codes.indices[position].tolist(), strict=True
    ):
        if value:
            added = cut.contribution(index, position)
            who = Contributor(kind="feature", attribution=0.0, layer=layer, index=index, sae=cut.name)
            yield _Written(who, matrix @ added)
    error = Contributor(kind="error", attribution=0.0, layer=layer, sae=cut.name)
    yield _Written(error, matrix @ cut.error[position])
    constant = Contributor(kind="bias", attribution=0.0, layer=layer, sae=cut.name)
    yield _Written(constant, matrix @ cut.constant[position])


def _of_block(block: BlockPass, matrix: Tensor, position: int, heads: Tensor | None) -> Iterator[_Written]:
    """What a block below wrote at a position, as it enters: heads ``[heads, d]``, MLP, biases, and what else there is."""
    known = torch.zeros_like(block.x[0, position])
    layer = block.layer
    if "attn_out" in block.sites:
        written = block.sites["attn_out"].detach()[0, position]
        known = known + written
        yield from _attention(layer, matrix @ written, None if heads is None else matrix @ heads.T)
    if "mlp_out" in block.sites:
        written = block.sites["mlp_out"].detach()[0, position]
        known = known + written
        yield _Written(Contributor(kind="mlp", attribution=0.0, layer=layer), matrix @ written)
    added = (block.out - block.x).detach()[0, position]
    rest = added - known
    if float(rest.norm()) > _ROUNDING * float(added.norm()):
        yield _Written(Contributor(kind="block", attribution=0.0, layer=layer), matrix @ rest)


def _attention(layer: int, whole: Tensor, heads: Tensor | None) -> Iterator[_Written]:
    """Heads ``[head_dim, heads]``, each summed over the positions it reads, and the bias of their output."""
    if heads is None:
        yield _Written(Contributor(kind="attention", attribution=0.0, layer=layer), whole)
        return
    for head, vector in enumerate(heads.T):
        yield _Written(Contributor(kind="head", attribution=0.0, layer=layer, head=head), vector)
    rest = whole - heads.sum(1)
    if float(rest.norm()) > _ROUNDING * float(whole.norm()):
        yield _Written(Contributor(kind="bias", attribution=0.0, layer=layer), rest)


def _heads(block: BlockPass, positions: Sequence[int]) -> Tensor | None:
    """What each head adds to the stream at some positions, ``[positions, heads, d]``; None where that is not known.

    Derivatives along each head's output: the gradient of a gradient, which is linear in what is asked for.
    """
    attention, written = block.attention, block.sites.get("attn_out")
    if attention is None or written is None:
        return None
    rows = written[0, list(positions)]
    asked = torch.zeros_like(rows, requires_grad=True)
    gradient: Tensor | None = torch.autograd.grad(
        rows, attention.out, asked, create_graph=True, allow_unused=True
    )[0]
    if gradient is None:
        return None
    each = (gradient * attention.out.detach())[0].sum((1, 2))
    found = [_jacobian(heads, asked) for heads in each.split(_at_once(attention.out))]
    return torch.cat(found).transpose(0, 1)


def _at_once(tensor: Tensor) -> int:
    """How many gradients as large as a tensor are computed together."""
    return max(1, MOST_BYTES // (4 * tensor.numel()))


def _jacobian(of: Tensor, at: Tensor) -> Tensor:
    """Derivatives ``[outputs, …]`` of a vector at a tensor, zeros where it does not depend on it."""
    if not of.requires_grad:
        return at.new_zeros((len(of), *at.shape))
    eye = torch.eye(len(of), device=of.device)
    found: Tensor | None = torch.autograd.grad(
        of, at, eye, retain_graph=True, allow_unused=True, is_grads_batched=True
    )[0]
    return at.new_zeros((len(of), *at.shape)) if found is None else found.detach()
