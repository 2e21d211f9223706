"""The completeness of a pinned subgraph, and the cases by which the browser's own code for it is tested."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs import Account, Graph, Node, pinned_completeness
from tests.graph_documents import edge, feature, graph, random_graph

CASES = Path(__file__).parents[2] / "frontend/src/graphs/pinned.cases.json"
HIGH, OTHER, LOW = feature(9, 1, 6), feature(9, 2, 5), feature(6, 3, 4, hop=2)
ERROR = Node(
    id="resid_post.9:error@6", kind="error", layer=9, position=6, site="resid_post.9", sae="sae9", hop=1
)


def account(node: str, absolute: float, **rest: Any) -> Account:
    return Account(
        node=node,
        value=0,
        constant=0,
        features=0,
        errors=0,
        biases=0,
        modules=0,
        shown=0,
        absolute=absolute,
        **rest,
    )


def cases() -> list[dict[str, Any]]:
    """Twenty random graphs with pins and the right number, in the fields that the formula reads."""
    written = []
    for seed in range(20):
        rng = random.Random(1000 + seed)
        document = random_graph(seed, width=5)
        pinned = [node.id for node in document.nodes if rng.random() < 0.3 + 0.7 * seed / 19]
        if seed % 5 == 3:
            document = two_sides(document, rng)
        if seed % 5 == 4:
            document, pinned = two_targets(document, pinned, rng)
        written.append(
            {
                "graph": {
                    "nodes": [
                        {"id": n.id, "kind": n.kind, "probability": n.probability} for n in document.nodes
                    ],
                    "edges": [
                        {"from": e.parent, "to": e.child, "attribution": e.attribution, "side": e.side}
                        for e in document.edges
                    ],
                    "accounts": [
                        {"node": a.node, "side": a.side, "absolute": a.absolute} for a in document.accounts
                    ],
                },
                "pinned": [*pinned, "not a node"],
                "completeness": pinned_completeness(document, [*pinned, "not a node"]),
            }
        )
    return written


def two_sides(document: Graph, rng: random.Random) -> Graph:
    """The target as an attention score: edges into its query or its key."""
    edges = [
        replace(e, side=rng.choice(("query", "key"))) if e.child == "target" else e for e in document.edges
    ]
    rest = [a for a in document.accounts if a.node != "target"]
    return replace(
        document,
        edges=tuple(edges),
        accounts=(*rest, account("target", 4.0, side="query"), account("target", 2.5, side="key")),
    )


def two_targets(document: Graph, pinned: list[str], rng: random.Random) -> tuple[Graph, list[str]]:
    """A second token as a target; both with a probability."""
    second = Node(id="token:99@6", kind="target", layer=12, position=6, probability=0.1)
    nodes = [replace(n, probability=0.6) if n.id == "target" else n for n in document.nodes]
    parents = [n for n in nodes if n.hop == 1]
    edges = [edge(n.id, second.id, rng.gauss(0, 1)) for n in parents]
    return (
        replace(
            document,
            nodes=(*nodes, second),
            edges=(*document.edges, *edges),
            accounts=(*document.accounts, account(second.id, 5.0)),
        ),
        pinned,
    )


def test_the_browsers_cases_are_what_this_code_gives() -> None:
    kept = json.loads(CASES.read_text())
    made = cases()
    assert len(kept) == len(made) == 20
    for old, new in zip(kept, made, strict=True):
        assert old["graph"] == new["graph"], "write the cases again: python -m tests.unit.test_graph_pinned"
        assert old["pinned"] == new["pinned"]
        assert old["completeness"] == pytest.approx(new["completeness"], abs=1e-12)
    numbers = {round(case["completeness"], 3) for case in kept if case["completeness"] is not None}
    assert len(numbers) > 12
    assert any(
        len({a["node"] for a in case["graph"]["accounts"]}) < len(case["graph"]["accounts"]) for case in kept
    )


def along_paths(document: Graph, pinned: set[str]) -> float | None:
    """The same from paths: every path from a target down adds its product of shares to the influence of its end."""
    kinds = {node.id: node.kind for node in document.nodes}
    counted = {name for name, kind in kinds.items() if kind == "target" or name in pinned}

    def shares(name: str) -> list[tuple[str, float]]:
        mine = [a for a in document.accounts if a.node == name and a.absolute > 0]
        found = []
        for one in mine:
            into = [e for e in document.edges if e.child == name and e.side == one.side]
            assert sum(abs(e.attribution) for e in into) <= one.absolute
            found += [(e.parent, abs(e.attribution) / one.absolute / len(mine)) for e in into]
        return [(p, share) for p, share in found if p in counted and kinds[p] != "error"]

    sums = [0.0, 0.0]

    def walk(name: str, influence: float) -> None:
        if any(a.node == name for a in document.accounts):
            sums[0] += influence * sum(share for _, share in shares(name))
            sums[1] += influence
            for parent, share in shares(name):
                walk(parent, influence * share)

    targets = [name for name, kind in kinds.items() if kind == "target"]
    for target in targets:
        walk(target, 1 / len(targets))
    return sums[0] / sums[1] if sums[1] else None


@pytest.mark.parametrize("seed", range(60))
def test_influence_is_a_sum_over_paths(seed: int) -> None:
    document = random_graph(seed, width=3)
    rng = random.Random(seed)
    pinned = {node.id for node in document.nodes if rng.random() < 0.6}
    expected = along_paths(document, pinned)
    found = pinned_completeness(document, pinned)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))
    assert found is None or 0 <= found <= 1


def test_by_hand() -> None:
    document = graph(
        [HIGH, OTHER, LOW, ERROR],
        [
            edge(HIGH.id, "target", -3.0),
            edge(OTHER.id, "target", 2.0),
            edge(ERROR.id, "target", 1.0),
            edge(LOW.id, HIGH.id, 1.0, hop=2),
        ],
        [account("target", 10.0), account(HIGH.id, 4.0)],
    )
    assert pinned_completeness(document, []) == 0
    # the target is explained by 3 of 10; HIGH, with influence 0.3, by nothing that is pinned
    assert pinned_completeness(document, [HIGH.id]) == pytest.approx(0.3 / 1.3)
    assert pinned_completeness(document, [HIGH.id, LOW.id]) == pytest.approx((0.3 + 0.3 * 0.25) / 1.3)
    # an error node explains nothing, pinned or not, and LOW alone reaches the target through nothing
    assert pinned_completeness(document, [ERROR.id, LOW.id]) == 0
    everything = pinned_completeness(document, [node.id for node in document.nodes])
    assert everything == pytest.approx((0.5 + 0.3 * 0.25) / 1.3)


def test_an_account_smaller_than_its_edges_never_explains_more_than_all() -> None:
    document = graph([HIGH, OTHER], [edge(HIGH.id, "target", 3.0), edge(OTHER.id, "target", 1.0)])
    document = replace(document, accounts=(account("target", 1.0),))
    assert pinned_completeness(document, [HIGH.id]) == pytest.approx(0.75)
    assert pinned_completeness(document, [HIGH.id, OTHER.id]) == 1


def test_each_side_of_a_score_counts_half() -> None:
    document = graph(
        [HIGH, OTHER],
        [edge(HIGH.id, "target", 1.0, side="query"), edge(OTHER.id, "target", 30.0, side="key")],
        [account("target", 2.0, side="query"), account("target", 60.0, side="key")],
    )
    assert pinned_completeness(document, [HIGH.id]) == pytest.approx(0.25)
    assert pinned_completeness(document, [HIGH.id, OTHER.id]) == pytest.approx(0.5)


def test_several_targets_count_by_their_probability() -> None:
    targets = [
        Node(id=name, kind="target", layer=12, position=6, probability=p)
        for name, p in (("target", 0.6), ("b", 0.2))
    ]
    document = graph(
        [*targets, HIGH],
        [edge(HIGH.id, "target", 1.0)],
        [account("target", 1.0), account("b", 1.0)],
    )
    assert pinned_completeness(document, [HIGH.id]) == pytest.approx(0.75)
    unknown = replace(document, nodes=(replace(targets[0], probability=None), *document.nodes[1:]))
    assert pinned_completeness(unknown, [HIGH.id]) == pytest.approx(0.5)


def test_no_account_is_no_number_and_a_cycle_is_refused() -> None:
    assert pinned_completeness(graph([HIGH], [edge(HIGH.id, "target")]), [HIGH.id]) is None
    with pytest.raises(MicroscopeError) as refusal:
        pinned_completeness(graph([HIGH, LOW], [edge(HIGH.id, LOW.id), edge(LOW.id, HIGH.id)]), [HIGH.id])
    assert refusal.value.code == "graph_cycle"


if __name__ == "__main__":
    CASES.parent.mkdir(exist_ok=True)
    # one line per case keeps differences readable
    CASES.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases()) + "\n]\n")
