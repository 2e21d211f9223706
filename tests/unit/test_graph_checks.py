"""What no graph may hold, each with its own code; and that a large graph is checked in linear time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs import (
    MAX_EDGES,
    MAX_NODES,
    Account,
    Component,
    Edge,
    Graph,
    GraphTarget,
    Node,
    Part,
    Summary,
    check,
    target_first,
)
from tests.graph_documents import edge, feature, graph, random_graph

HIGH, LOW = feature(9, 1, 6), feature(6, 3, 4, hop=2)


def sound() -> Graph:
    account = Account(
        node="target", value=1, constant=0, features=1, errors=0, biases=0, modules=0, shown=1, absolute=1
    )
    return graph([HIGH, LOW], [edge(HIGH.id, "target"), edge(LOW.id, HIGH.id, hop=2)], [account])


def with_node(document: Graph, **fields: Any) -> Graph:
    return replace(document, nodes=(document.nodes[0], replace(HIGH, **fields), *document.nodes[2:]))


def with_edge(document: Graph, **fields: Any) -> Graph:
    return replace(document, edges=(replace(document.edges[0], **fields), *document.edges[1:]))


def with_parts(document: Graph, *parts: Part) -> Graph:
    return with_edge(document, parts=parts)


DIRECT = Part(kind="direct", attribution=0.5)
NAN, INFINITE = float("nan"), float("inf")

BROKEN: list[tuple[str, Callable[[Graph], Graph]]] = [
    ("graph_duplicate", lambda g: replace(g, nodes=(*g.nodes, HIGH))),
    ("graph_duplicate", lambda g: replace(g, edges=(*g.edges, edge(HIGH.id, "target", 7.0)))),
    ("graph_duplicate", lambda g: replace(g, accounts=g.accounts * 2)),
    ("graph_duplicate", lambda g: replace(g, saes=g.saes * 2)),
    ("graph_node_missing", lambda g: replace(g, edges=(*g.edges, edge("nobody", "target")))),
    ("graph_node_missing", lambda g: replace(g, edges=(*g.edges, edge(HIGH.id, "nobody")))),
    ("graph_node_missing", lambda g: replace(g, accounts=(replace(g.accounts[0], node="nobody"),))),
    ("graph_target_missing", lambda g: replace(g, nodes=(replace(g.nodes[0], kind="block"), *g.nodes[1:]))),
    ("graph_sae_missing", lambda g: with_node(g, sae="of someone else")),
    ("graph_sae_missing", lambda g: with_node(g, index=2048)),
    ("graph_sae_missing", lambda g: with_node(g, index=-1)),
    ("graph_block_missing", lambda g: with_node(g, layer=13)),
    ("graph_block_missing", lambda g: with_node(g, layer=-2)),
    (
        "graph_block_missing",
        lambda g: with_parts(g, DIRECT, Part(kind="head", attribution=0.5, layer=12, head=0)),
    ),
    ("graph_block_missing", lambda g: with_parts(g, DIRECT, Part(kind="mlp", attribution=0.5))),
    (
        "graph_block_missing",
        lambda g: replace(g, components=(Component(kind="mlp", attribution=1.0, layer=12),)),
    ),
    ("graph_position", lambda g: with_node(g, position=7)),
    ("graph_position", lambda g: with_node(g, position=-1)),
    ("graph_position", lambda g: with_node(g, position=None)),
    ("graph_position", lambda g: replace(g, target=GraphTarget(kind="token", token=1, position=7))),
    ("graph_position", lambda g: replace(g, target=GraphTarget(kind="token", token=1, position=-2))),
    (
        "graph_position",
        lambda g: replace(
            g, components=(Component(kind="head", attribution=1.0, layer=1, head=0, position=7),)
        ),
    ),
    ("graph_number", lambda g: with_node(g, activation=NAN)),
    ("graph_number", lambda g: with_node(g, value=-INFINITE)),
    ("graph_number", lambda g: with_edge(g, attribution=NAN)),
    ("graph_number", lambda g: with_edge(g, control=INFINITE)),
    ("graph_number", lambda g: with_edge(g, strengths=(1.0,), effects=(NAN,))),
    ("graph_number", lambda g: with_parts(g, Part(kind="direct", attribution=NAN))),
    ("graph_number", lambda g: replace(g, completeness=NAN)),
    ("graph_number", lambda g: replace(g, summary=Summary(spearman=NAN))),
    ("graph_number", lambda g: replace(g, accounts=(replace(g.accounts[0], absolute_errors=NAN),))),
    ("graph_number", lambda g: replace(g, components=(Component(kind="bias", attribution=INFINITE),))),
    (
        "graph_number",
        lambda g: replace(g, target=GraphTarget(kind="direction", layer=1, vector=(1.0, NAN))),
    ),
    ("graph_number", lambda g: with_node(g, probability=1.5)),
    ("graph_parts", lambda g: with_parts(g, DIRECT)),
    ("graph_parts", lambda g: with_parts(g, DIRECT, Part(kind="mlp", attribution=0.50002, layer=1))),
    ("graph_verdict", lambda g: with_edge(g, verified=True)),
    ("graph_verdict", lambda g: with_edge(g, verified=True, verdict="not shown")),
    ("graph_verdict", lambda g: with_edge(g, verified=False, verdict="weak")),
    ("graph_verdict", lambda g: with_edge(g, verdict="causal")),
    ("graph_verdict", lambda g: with_edge(g, strengths=(1.0, 2.0), effects=(1.0,))),
    ("graph_cycle", lambda g: replace(g, edges=(*g.edges, edge(HIGH.id, LOW.id)))),
    ("graph_cycle", lambda g: replace(g, edges=(*g.edges, edge(LOW.id, LOW.id)))),
    ("graph_cycle", lambda g: replace(g, edges=(*g.edges, edge("target", LOW.id)))),
]


@pytest.mark.parametrize(("code", "breaking"), BROKEN)
def test_what_does_not_hold_together_is_refused(code: str, breaking: Callable[[Graph], Graph]) -> None:
    check(sound())
    with pytest.raises(MicroscopeError) as refusal:
        check(breaking(sound()))
    assert refusal.value.code == code
    assert refusal.value.hint


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs_hold_together_also_as_json(seed: int) -> None:
    document = random_graph(seed)
    check(document)
    assert msgspec.json.decode(msgspec.json.encode(document), type=Graph) == document


@pytest.mark.parametrize("seed", range(40))
def test_children_come_before_parents(seed: int) -> None:
    document = random_graph(seed)
    order = {name: place for place, name in enumerate(target_first(document))}
    assert set(order) == {node.id for node in document.nodes}
    assert all(order[found.child] < order[found.parent] for found in document.edges)


def test_parts_that_cancel_are_judged_by_their_own_size() -> None:
    # in float32 a sum of parts of size 1000 is not known better than this
    parts = (Part(kind="direct", attribution=1000.0), Part(kind="mlp", attribution=-998.995, layer=3))
    check(with_edge(sound(), attribution=1.0, parts=parts))
    with pytest.raises(MicroscopeError, match="sum to"):
        check(with_edge(sound(), attribution=1.1, parts=parts))


def test_a_small_edge_is_judged_by_what_float32_can_tell_beside_large_ones() -> None:
    account = replace(sound().accounts[0], absolute=1000.0)
    parts = (Part(kind="direct", attribution=0.01), Part(kind="mlp", attribution=0.0005, layer=3))
    among_large = replace(with_edge(sound(), attribution=0.01, parts=parts), accounts=(account,))
    check(among_large)
    with pytest.raises(MicroscopeError, match="sum to"):
        check(replace(among_large, accounts=(replace(account, absolute=100.0),)))


def test_more_than_can_be_kept_is_refused_with_the_numbers() -> None:
    many = tuple(Node(id=str(number), kind="block", layer=0) for number in range(MAX_NODES + 1))
    with pytest.raises(MicroscopeError, match="50,001 nodes; at most 50,000") as refusal:
        check(replace(sound(), nodes=many))
    assert refusal.value.code == "graph_too_large"
    with pytest.raises(MicroscopeError, match="200,001 edges"):
        check(replace(sound(), edges=(Edge(parent="a", child="b", attribution=0, hop=1),) * (MAX_EDGES + 1)))
    crowded = replace(sound().edges[0], parts=(DIRECT,) * 1001)
    with pytest.raises(MicroscopeError, match="parts of edges"):
        check(replace(sound(), edges=(crowded,) * 1000))


def test_the_largest_graph_is_checked_in_seconds() -> None:
    nodes = [replace(HIGH, id=str(number)) for number in range(MAX_NODES - 1)]
    edges = [
        Edge(parent=str(number), child=str(number // 2), attribution=1.0, hop=1)
        for number in range(1, MAX_NODES - 1)
    ]
    edges += [Edge(parent=e.parent, child="target", attribution=1.0, hop=1) for e in edges]
    began = time.process_time()
    check(graph(nodes, edges))
    assert time.process_time() - began < 5
