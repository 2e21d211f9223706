"""How much of a target a pinned subgraph explains. The browser computes the same; change both together."""

from __future__ import annotations

import math
from collections.abc import Collection

from microscope.graphs.checks import target_first
from microscope.graphs.document import Graph, Node


def pinned_completeness(graph: Graph, pinned: Collection[str]) -> float | None:
    """The completeness of a pinned subgraph, 0 to 1; whatever is not pinned counts as error.

    ``P`` are the pinned nodes and all targets; ids that the graph does not have are ignored. Of every node ``n`` of
    ``P``, ``S(n)`` are the sides of its accounts whose ``D`` is not 0. With edges ``e`` from parent ``p(e)``:

        D(n, s) = max(account(n, s).absolute, Σ |attribution(e)| over the edges into n on side s)
        w(e)    = |attribution(e)| / D(n, s) / |S(n)|
        c(n)    = Σ w(e) over the edges into n, on sides of S(n), whose parent is in P and not an error node
        I(n)    = I₀(n) + Σ w(e) · I(child(e)) over the edges that count in c and leave n
        result  = Σ I(n) · c(n) / Σ I(n), both over the nodes of P of which S(n) is not empty

    ``I₀`` is 0 but for targets. One target has 1; several share 1 by their probability, or equally where one of
    them has none or all sum to 0. None where no node counts.

    ``compute_graph_scores`` of circuit-tracer, in the form in which Neuronpedia applies it to pinned nodes, differs:
    it divides by the edges that the graph shows, where ``absolute`` also holds those that it does not; it averages
    over nodes that nothing is attributed to, too (error nodes and embeddings, as if explained in full), which draws
    the result towards 1; it takes embeddings as pinned; and it knows neither biases nor sides.

    Raises:
        MicroscopeError: ``graph_node_missing``, ``graph_cycle``.
    """
    kept = {node.id: node for node in graph.nodes if node.kind == "target" or node.id in pinned}
    incoming: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for edge in graph.edges:
        incoming.setdefault((edge.child, edge.side), []).append((edge.parent, abs(edge.attribution)))
    sides: dict[str, list[tuple[float, list[tuple[str, float]]]]] = {}
    for account in graph.accounts:
        edges = incoming.get((account.node, account.side), [])
        whole = max(account.absolute, math.fsum(size for _, size in edges))
        if whole > 0:
            sides.setdefault(account.node, []).append((whole, edges))
    influence = _targets([node for node in kept.values() if node.kind == "target"])
    explained = total = 0.0
    for name in target_first(graph):
        if name not in kept or name not in sides:
            continue
        own, share = influence.get(name, 0.0), 0.0
        for whole, edges in sides[name]:
            for parent, size in edges:
                if parent in kept and kept[parent].kind != "error":
                    weight = size / whole / len(sides[name])
                    share += weight
                    influence[parent] = influence.get(parent, 0.0) + weight * own
        explained += own * share
        total += own
    return explained / total if total else None


def _targets(targets: list[Node]) -> dict[str, float]:
    """The influence that each target starts with; all sum to 1."""
    likely = [target.probability for target in targets if target.probability is not None]
    whole = math.fsum(likely)
    if len(likely) == len(targets) and whole > 0:
        return {target.id: p / whole for target, p in zip(targets, likely, strict=True)}
    return {target.id: 1 / len(targets) for target in targets}
