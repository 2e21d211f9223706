"""Carries folded away: one direction found again at one SAE after another is one node, and no step of a computation."""

from __future__ import annotations

import msgspec

from microscope.graphs.checks import target_first
from microscope.graphs.document import Edge, Graph

MEDIATED = 0.25
"""Which share of an effect has to go through the child for an edge of hop 2 or more to count."""
COMPUTED = 0.05
"""Which share of the sizes of an edge's parts heads, MLPs and blocks have to hold for the edge to be a hop."""


class Fold(msgspec.Struct, kw_only=True, frozen=True):
    """Nodes that carries join, drawn as one.

    ``id`` is that of the first member. ``members`` are ids, the highest layer first; ``lowest`` and ``highest``
    are their layers.
    """

    id: str
    members: tuple[str, ...]
    lowest: int
    highest: int


class Folded(msgspec.Struct, kw_only=True, frozen=True):
    """A graph with its carries folded: every node is in exactly one fold; ``edges`` lead from fold to fold.

    Edges keep the ids of their own nodes. Two of them may join the same folds: they explain different members.
    """

    folds: tuple[Fold, ...]
    edges: tuple[Edge, ...]


def contract(graph: Graph) -> Folded:
    """Join nodes linked by carries that were not refuted; edges inside a fold are left out.

    A carry that was measured and not shown stays an edge.

    Raises:
        MicroscopeError: ``graph_node_missing``, ``graph_cycle``.
    """
    place = {node.id: (node, number) for number, node in enumerate(graph.nodes)}
    target_first(graph)
    root = {name: name for name in place}

    def find(name: str) -> str:
        while root[name] != name:
            root[name] = root[root[name]]
            name = root[name]
        return name

    for edge in graph.edges:
        if _joins(edge):
            root[find(edge.parent)] = find(edge.child)
    gathered: dict[str, list[str]] = {}
    for name in place:
        gathered.setdefault(find(name), []).append(name)
    folds = []
    for names in gathered.values():
        names.sort(key=lambda name: (place[name][0].hop, -place[name][0].layer, place[name][1]))
        layers = [place[name][0].layer for name in names]
        folds.append(Fold(id=names[0], members=tuple(names), lowest=min(layers), highest=max(layers)))
    between = tuple(edge for edge in graph.edges if find(edge.parent) != find(edge.child))
    return Folded(folds=tuple(folds), edges=between)


def depth(graph: Graph) -> int:
    """Hops on the longest path that ends at a target and whose every edge was verified.

    An edge is a hop when its parent is a feature, it is no carry, was verified on the running model, and heads, MLPs
    and blocks on the way hold at least 5 % of it; one of hop 2 or more counts only when ``mediated`` is at least 0.25.
    A path may use carries that were not refuted, and verified edges by which a target reads a feature directly; they add
    nothing. It may not enter a fold at one member and leave it
    at a lower one, since nothing flows down.

    Raises:
        MicroscopeError: ``graph_node_missing``, ``graph_cycle``.
    """
    features = {node.id for node in graph.nodes if node.kind == "feature"}
    targets = {node.id for node in graph.nodes if node.kind == "target"}
    # A feature as a target is read by its SAE; all others may be read where an SAE stands.
    reading = targets if graph.target.kind != "feature" else set()
    parents: dict[str, list[tuple[str, int]]] = {}
    for edge in graph.edges:
        if _joins(edge) or (edge.verified and edge.child in reading and _read_directly(edge)):
            parents.setdefault(edge.child, []).append((edge.parent, 0))
        elif is_hop(edge) and edge.parent in features:
            parents.setdefault(edge.child, []).append((edge.parent, 1))
    longest = dict.fromkeys(targets, 0)
    for name in target_first(graph):
        if name in longest:
            for parent, step in parents.get(name, ()):
                longest[parent] = max(longest.get(parent, 0), longest[name] + step)
    return max(longest.values(), default=0)


def is_hop(edge: Edge) -> bool:
    """Whether an edge counts as a hop: verified, computed by a head, an MLP or a block, mediated from hop 2 on."""
    if edge.carry or edge.verified is not True or not computed(edge):
        return False
    return edge.hop < 2 or (edge.mediated is not None and edge.mediated >= MEDIATED)


def computed(edge: Edge) -> bool:
    """Whether heads, MLPs and blocks hold at least 5 % of an edge: of the sizes of all parts, small ones included."""
    sizes = sum(abs(part.attribution) for part in edge.parts)
    passed = sum(abs(part.attribution) for part in edge.parts if part.kind in ("head", "mlp", "block"))
    return passed > 0 and passed >= COMPUTED * sizes


def _read_directly(edge: Edge) -> bool:
    """Whether nearly all of an edge passes no head, MLP or block."""
    sizes = sum(abs(part.attribution) for part in edge.parts)
    direct = sum(abs(part.attribution) for part in edge.parts if part.kind == "direct")
    return sizes > 0 and direct > (1 - COMPUTED) * sizes


def _joins(edge: Edge) -> bool:
    return edge.carry and edge.verified is not False
