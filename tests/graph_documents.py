"""Graphs for tests: small ones by hand, and random ones that hold together."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from microscope.graphs import Account, Edge, Graph, GraphSae, GraphTarget, GraphToken, Node, Part
from microscope.graphs.document import Verdict

LAYERS = 12
TOKENS = ("The", " cat", " sat", " on", " the", " mat", ".")


def graph(nodes: Sequence[Node], edges: Sequence[Edge] = (), accounts: Sequence[Account] = ()) -> Graph:
    """A graph of a model of twelve blocks and three SAEs, with a target node added if there is none."""
    if not any(node.kind == "target" for node in nodes):
        nodes = [Node(id="target", kind="target", layer=LAYERS, position=len(TOKENS) - 1), *nodes]
    return Graph(
        model="tiny",
        model_fingerprint="f" * 16,
        prompt="".join(TOKENS),
        tokens=tuple(GraphToken(token=number + 10, text=text) for number, text in enumerate(TOKENS)),
        target=GraphTarget(kind="token", token=12),
        n_layers=LAYERS,
        saes=tuple(
            GraphSae(fingerprint=f"sae{layer}", name=f"SAE {layer}", site=site, site_out=site, n_latents=2048)
            for layer, site in ((9, "resid_post.9"), (6, "resid_post.6"), (3, "resid_post.3"))
        ),
        nodes=tuple(nodes),
        edges=tuple(edges),
        accounts=tuple(accounts),
    )


def feature(layer: int, index: int, position: int, hop: int = 1) -> Node:
    """A latent of one of the three SAEs."""
    return Node(
        id=f"resid_post.{layer}:{index}@{position}",
        kind="feature",
        layer=layer,
        position=position,
        site=f"resid_post.{layer}",
        sae=f"sae{layer}",
        index=index,
        hop=hop,
        activation=1.5,
    )


def edge(parent: str, child: str, attribution: float = 1.0, hop: int = 1, **rest: Any) -> Edge:
    """An edge of which half passes a head and half nothing, unless ``parts`` says otherwise."""
    parts = (
        Part(kind="direct", attribution=attribution / 2),
        Part(kind="head", attribution=attribution / 2, layer=8, head=1),
    )
    return Edge(parent=parent, child=child, attribution=attribution, hop=hop, **({"parts": parts} | rest))


def random_graph(seed: int, width: int = 4, scale: float = 1.0) -> Graph:
    """Three SAEs, up to ``width`` features, an error and a bias node at each, edges at random from every level into
    the levels above, verdicts at random, and accounts that hold more than is shown."""
    rng = random.Random(seed)
    levels: list[list[Node]] = [[Node(id="target", kind="target", layer=LAYERS, position=6, value=3.0)]]
    for hop, layer in enumerate((9, 6, 3), start=1):
        level = [feature(layer, index, rng.randrange(7), hop) for index in range(rng.randint(1, width))]
        site, sae = f"resid_post.{layer}", f"sae{layer}"
        error = Node(id=f"{site}:error@2", kind="error", layer=layer, position=2, site=site, sae=sae, hop=hop)
        bias = Node(id=f"{site}:bias", kind="bias", layer=layer, site=site, sae=sae, hop=hop)
        levels.append([*level, error, bias])
    edges = [
        _random_edge(rng, parent, child, scale)
        for below, level in enumerate(levels)
        for parent in level
        for child in (
            node for upper in levels[:below] for node in upper if node.kind in ("target", "feature")
        )
        if rng.random() < (0.7 if child in levels[below - 1] else 0.15)
    ]
    rng.shuffle(edges)
    accounts = []
    for node in (node for level in levels for node in level):
        into = [found for found in edges if found.child == node.id]
        if into and rng.random() < 0.9:
            accounts.append(_account(rng, node, into, levels))
    return graph([node for level in levels for node in level], edges, accounts)


def _random_edge(rng: random.Random, parent: Node, child: Node, scale: float) -> Edge:
    attribution = rng.gauss(0, scale)
    direct = attribution * rng.random()
    parts = [
        Part(kind="direct", attribution=direct),
        Part(kind="mlp", attribution=attribution - direct, layer=8),
    ]
    verdicts: tuple[Verdict | None, ...] = (None, "causal", "weak", "not shown")
    verdict = rng.choice(verdicts)
    return Edge(
        parent=parent.id,
        child=child.id,
        attribution=attribution,
        hop=parent.hop,
        parts=tuple(parts) if rng.random() < 0.8 else (Part(kind="direct", attribution=attribution),),
        carry=parent.kind == child.kind == "feature" and rng.random() < 0.3,
        verdict=verdict,
        verified=None if verdict is None else verdict != "not shown",
        measured=None if verdict is None else attribution + rng.gauss(0, scale / 2),
        mediated=rng.choice((None, 0.1, 0.25, 0.9)) if parent.hop > 1 else None,
    )


def _account(rng: random.Random, node: Node, into: list[Edge], levels: list[list[Node]]) -> Account:
    kinds = {found.id: found.kind for level in levels for found in level}
    sums = {
        kind: math.fsum(found.attribution for found in into if kinds[found.parent] == kind)
        for kind in ("feature", "error", "bias")
    }
    sizes = math.fsum(abs(found.attribution) for found in into)
    errors = math.fsum(abs(found.attribution) for found in into if kinds[found.parent] == "error")
    return Account(
        node=node.id,
        value=sum(sums.values()),
        constant=0.0,
        features=sums["feature"],
        errors=sums["error"],
        biases=sums["bias"],
        modules=0.0,
        shown=sum(sums.values()),
        absolute=sizes * (1 + rng.random()),
        absolute_errors=errors,
    )
