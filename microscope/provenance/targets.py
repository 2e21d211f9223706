"""What a graph explains, as a number read from the residual stream."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from msgspec.structs import replace
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import GraphTarget, Node, Side
from microscope.params import Site
from microscope.provenance.cuts import Explained, feature_explained
from microscope.provenance.passes import BlockPass, PromptPass
from microscope.sae import SparseAutoencoder

TARGET = "target"
# Features named in a refusal.
_NAMED = 5

Saes = Mapping[str, SparseAutoencoder]


def resolve(
    held: PromptPass, target: GraphTarget, saes: Saes, special: Tensor
) -> tuple[GraphTarget, list[Explained], Node]:
    """A target with its positions counted from 0, the numbers that it stands for, and its node.

    An attention score is two numbers of one value: as a function of what is at the query, with the key as it is,
    and the other way round.

    Args:
        special: which tokens are special, ``[positions]``.

    Raises:
        MicroscopeError: ``no_such_position``, ``no_such_token``, ``layer_out_of_range``, ``no_such_head``,
            ``sae_not_attached``, ``no_such_feature``, ``no_such_site``, ``wrong_width``, ``does_not_fire``, ``not_visible`` or ``bad_target``.
    """
    target = _placed(target, len(held.tokens))
    node = Node(id=TARGET, kind="target", layer=held.loaded.n_layers, position=target.position)
    if target.kind == "feature":
        sae = _sae(saes, target.sae)
        found, activation = _feature(held, target, sae, special)
        node = replace(node, layer=found.site.layer, site=sae.config.site, sae=target.sae)
        return target, [found], replace(node, value=found.value, index=target.index, activation=activation)
    if target.kind == "attention":
        both = _score(held, target)
        return target, both, replace(node, layer=both[0].site.layer + 1, value=both[0].value)
    found = _direction(held, target) if target.kind == "direction" else _logit(held, target)
    layer = found.site.layer if target.kind == "direction" else held.loaded.n_layers
    return target, [found], replace(node, layer=layer, value=found.value, text=_text(held, target))


def _text(held: PromptPass, target: GraphTarget) -> str:
    """The token that is explained, or the two of a difference."""
    tokens = [token for token in (target.token, target.against) if token is not None]
    return " − ".join(held.loaded.texts(token) for token in tokens) if target.kind != "direction" else ""


def _placed(target: GraphTarget, length: int) -> GraphTarget:
    places = {"position": target.position}
    if target.key is not None:
        places["key"] = target.key
    return replace(target, **{name: place(position, length) for name, position in places.items()})


def place(position: int, length: int) -> int:
    """A position counted from 0.

    Raises:
        MicroscopeError: ``no_such_position``.
    """
    if not -length <= position < length:
        raise MicroscopeError(
            "no_such_position",
            f"Position {position} is outside the prompt, which has {length} tokens.",
            f"Choose 0 to {length - 1}, or -1 for the last.",
        )
    return position % length


def _sae(saes: Saes, name: str) -> SparseAutoencoder:
    found = saes.get(name)
    if found is None:
        raise MicroscopeError(
            "sae_not_attached", f"The target's SAE {name[:12]} is not among those given.", "Give it, too."
        )
    return found


def _feature(
    held: PromptPass, target: GraphTarget, sae: SparseAutoencoder, special: Tensor
) -> tuple[Explained, float]:
    """A feature's pre-activation, and its activation.

    Raises:
        MicroscopeError: ``bad_target``, ``no_such_feature``, ``layer_out_of_range``, ``no_such_site``,
            ``wrong_width``, or ``does_not_fire`` with what does.
    """
    if target.index is None:
        raise MicroscopeError("bad_target", "The target names an SAE but no feature of it.")
    sae.check_feature(target.index)
    site, position = Site.parse(sae.config.site), target.position
    require_layer(site.layer, held.loaded.n_layers)
    held.loaded.family.tap(site)  # raises where the model has no such site
    row = held.activation(site)[position]
    sae.check_width(row)
    with torch.no_grad():
        codes = sae.encode(row[None])
    kept = bool(sae.config.token_filter.keep(special[position], row.norm()))
    values = codes.values[0] * (codes.indices[0] == target.index)
    activation = float(values.sum())
    if not kept or activation <= 0:
        strongest = codes.values[0].topk(min(_NAMED, codes.values.shape[1]))
        names = [int(codes.indices[0][i]) for v, i in zip(*strongest, strict=True) if float(v) > 0]
        text = held.loaded.texts(held.tokens[position])
        reason = "its token filter leaves that token out" if not kept else "it is silent there"
        hint = "" if not kept or not names else f" There, {', '.join(map(str, names))} are the strongest."
        raise MicroscopeError(
            "does_not_fire",
            f"Feature {target.index} does not fire at position {position} ({text!r}): {reason}.{hint}",
            "Choose a position where it fires, or a feature that fires there.",
        )
    return feature_explained(TARGET, sae, row, target.index, position), activation


def _logit(held: PromptPass, target: GraphTarget) -> Explained:
    """A token's logit, or a difference, as a function of the last block's output; norms frozen."""
    tokens = [target.token] if target.kind == "token" else [target.token, target.against]
    vocabulary = held.loaded.vocab_size
    for token in tokens:
        if token is None or not 0 <= token < vocabulary:
            raise MicroscopeError("no_such_token", f"Token {token} is not in the vocabulary of {vocabulary}.")
    if len(tokens) == 2 and tokens[0] == tokens[1]:
        raise MicroscopeError(
            "bad_target", f"Token {tokens[0]} is to be compared with itself.", "Name two different tokens."
        )
    x = held.input_of(held.loaded.n_layers)[target.position].clone().requires_grad_()
    logits = held.logits(x[None])[0]
    value = logits[tokens[0]] if len(tokens) == 1 else logits[tokens[0]] - logits[tokens[1]]
    (vector,) = torch.autograd.grad(value, x)
    constant = float(value.detach() - vector @ x.detach())
    site = Site("resid_post", held.loaded.n_layers - 1)
    return Explained(TARGET, site, target.position, vector, float(value.detach()), constant, behind=True)


def _direction(held: PromptPass, target: GraphTarget) -> Explained:
    layer = require_layer(target.layer, held.loaded.n_layers)
    x = held.input_of(layer + 1)[target.position]
    vector = torch.tensor(target.vector, dtype=torch.float32, device=x.device)
    if vector.shape != x.shape or not bool(vector.isfinite().all()) or not bool(vector.any()):
        raise MicroscopeError(
            "bad_target",
            f"The direction has {len(target.vector)} numbers; {len(x)} finite ones, not all zero, are needed.",
        )
    return Explained(
        TARGET, Site("resid_post", layer), target.position, vector, float(vector @ x), 0.0, behind=True
    )


def require_layer(layer: int | None, n: int) -> int:
    """A block's number; raises :class:`MicroscopeError` ``layer_out_of_range``."""
    if layer is None or not 0 <= layer < n:
        raise MicroscopeError(
            "layer_out_of_range",
            f"Layer {layer} does not exist: the model has {n} layers.",
            f"Choose 0 to {n - 1}.",
        )
    return layer


def score_operands(block: BlockPass, head: int, query: int, key: int) -> tuple[Tensor, Tensor, float]:
    """Query and key of one head, as the score multiplies them: ``[head_dim]`` each, with their graph, and the factor.

    Raises:
        MicroscopeError: ``no_such_head``, ``not_visible`` or ``scores_unknown``.
    """
    attention = block.attention
    if attention is None or attention.query is None or attention.key is None or attention.scale is None:
        raise MicroscopeError(
            "scores_unknown",
            f"Block {block.layer} does not compute its attention from scores of queries and keys that could be "
            "followed.",
            "Choose a block with softmax attention.",
        )
    heads = attention.query.shape[1]
    if not 0 <= head < heads:
        raise MicroscopeError(
            "no_such_head",
            f"Block {block.layer} has no head {head}: it has {heads}.",
            f"Choose 0 to {heads - 1}.",
        )
    scores = attention.scores
    if (
        scores is not None and attention.bounded
    ):  # those are without the mask, and never so low that weights vanish
        masked = not float(attention.pattern[0, head, query, key])
    else:
        masked = scores is None or float(scores[0, head, query, key]) <= torch.finfo(scores.dtype).min / 2
    if key > query or masked:
        raise MicroscopeError(
            "not_visible",
            f"Position {query} does not see position {key} in block {block.layer}.",
            "Name the query first: it sees positions at or before its own, within its block's window.",
        )
    shared = heads // attention.key.shape[1]
    return attention.query[0, head, query], attention.key[0, head // shared, key], attention.scale


def _score(held: PromptPass, target: GraphTarget) -> list[Explained]:
    """A head's score in front of the softmax, as far as it is a product of query and key."""
    layer = require_layer(target.layer, held.loaded.n_layers)
    if target.head is None or target.key is None:
        raise MicroscopeError("bad_target", "An attention target needs a layer, a head, a query and a key.")
    block = held.frozen(layer, layer).blocks[layer]
    query, key, scale = score_operands(block, target.head, target.position, target.key)
    value = float((query @ key).detach()) * scale
    site = Site("resid_post", layer - 1)
    found = []
    ends: list[tuple[Side, Tensor, Tensor, int]] = [
        ("query", query, key, target.position),
        ("key", key, query, target.key),
    ]
    for side, end, other, position in ends:
        (gradient,) = torch.autograd.grad(end @ other.detach() * scale, block.x, retain_graph=True)
        vector = gradient[0, position]
        constant = value - float(vector @ block.x[0, position].detach())
        found.append(Explained(TARGET, site, position, vector, value, constant, side, behind=True))
    return found
