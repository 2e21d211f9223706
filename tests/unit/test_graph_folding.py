"""Carries folded, the depth that is left, and the summary of a verification."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs import Edge, Graph, Part, Summary, contract, depth, error_share, spearman, summarise
from tests.graph_documents import edge, feature, graph, random_graph

HIGH, MIDDLE, LOW = feature(9, 1, 6), feature(6, 2, 4, hop=2), feature(3, 3, 2, hop=3)
VERIFIED: dict[str, Any] = {"verified": True, "verdict": "causal", "measured": 1.0}
SHOWN = VERIFIED | {"mediated": 0.5}
REFUTED: dict[str, Any] = {"verified": False, "verdict": "not shown", "measured": 0.0}


def mostly_direct(by_an_mlp: float) -> tuple[Part, ...]:
    return Part(kind="direct", attribution=1 - by_an_mlp), Part(kind="mlp", attribution=by_an_mlp, layer=9)


def chain(first: dict[str, Any], second: dict[str, Any], third: dict[str, Any]) -> Graph:
    """target ← HIGH ← MIDDLE ← LOW."""
    return graph(
        [HIGH, MIDDLE, LOW],
        [
            edge(HIGH.id, "target", **first),
            edge(MIDDLE.id, HIGH.id, hop=2, **second),
            edge(LOW.id, MIDDLE.id, hop=3, **third),
        ],
    )


@pytest.mark.parametrize(
    ("first", "second", "third", "hops"),
    [
        (VERIFIED, SHOWN, SHOWN, 3),
        (VERIFIED, VERIFIED, SHOWN, 1),  # nobody showed that the second hop goes through the first
        (VERIFIED, SHOWN | {"mediated": 0.25}, SHOWN | {"mediated": 0.2499}, 2),
        ({}, SHOWN, SHOWN, 0),  # the first was not measured
        (REFUTED, SHOWN, SHOWN, 0),
        (VERIFIED | {"carry": True}, SHOWN, SHOWN, 2),
        ({"carry": True}, SHOWN, SHOWN, 2),  # a carry that nobody refuted joins
        (REFUTED | {"carry": True}, SHOWN, SHOWN, 0),
        (VERIFIED, SHOWN | {"carry": True}, SHOWN, 2),
        (VERIFIED | {"parts": ()}, SHOWN, SHOWN, 0),  # nothing says that anything was computed
        # A target that is no feature may be read where an SAE stands: that is no hop, and no end.
        (VERIFIED | {"parts": (Part(kind="direct", attribution=1.0),)}, SHOWN, SHOWN, 2),
        (VERIFIED | {"parts": (Part(kind="block", attribution=1.0, layer=9),)}, SHOWN, SHOWN, 3),
        (VERIFIED | {"parts": mostly_direct(0.051)}, SHOWN, SHOWN, 3),
        (VERIFIED | {"parts": mostly_direct(0.049)}, SHOWN, SHOWN, 2),
        (
            VERIFIED | {"parts": (Part(kind="other", attribution=1.0),)},
            SHOWN,
            SHOWN,
            0,
        ),  # of what, nobody says
    ],
)
def test_depth_counts_what_was_verified_computed_and_mediated(
    first: dict[str, Any], second: dict[str, Any], third: dict[str, Any], hops: int
) -> None:
    assert depth(chain(first, second, third)) == hops


def longest_by_walking(document: Graph) -> int:
    """The depth by trying every path from every target, written down once more from the definition."""

    def walk(name: str) -> int:
        best = 0
        for found in document.edges:
            if found.child != name:
                continue
            if found.carry:
                if found.verified in (True, None):
                    best = max(best, walk(found.parent))
                continue
            by_module = [part for part in found.parts if part.kind in ("head", "mlp", "block")]
            passed = sum(abs(part.attribution) for part in by_module)
            if not found.verified:
                continue
            if not by_module or passed / sum(abs(part.attribution) for part in found.parts) < 0.05:
                if (
                    document.node(name).kind == "target" and document.target.kind != "feature"
                ):  # a target that reads a feature directly
                    best = max(best, walk(found.parent))
                continue
            if document.node(found.parent).kind != "feature":
                continue
            if found.hop == 1 or (found.mediated or 0) >= 0.25:
                best = max(best, 1 + walk(found.parent))
        return best

    return max(walk(node.id) for node in document.nodes if node.kind == "target")


@pytest.mark.parametrize("seed", range(200))
def test_depth_of_random_graphs_is_that_of_the_longest_walk(seed: int) -> None:
    document = random_graph(seed)
    assert depth(document) == longest_by_walking(document)


def test_random_graphs_are_of_several_depths() -> None:
    assert {depth(random_graph(seed)) for seed in range(200)} >= {0, 1, 2, 3}


@pytest.mark.parametrize("seed", range(50))
def test_folds_are_what_carries_reach(seed: int) -> None:
    document = random_graph(seed)
    folded = contract(document)
    layer = {node.id: node.layer for node in document.nodes}
    assert sorted(name for fold in folded.folds for name in fold.members) == sorted(layer)
    place = {name: fold.id for fold in folded.folds for name in fold.members}
    carries = [found for found in document.edges if found.carry and found.verified is not False]
    for fold in folded.folds:
        layers = [layer[name] for name in fold.members]
        assert (fold.lowest, fold.highest) == (min(layers), max(layers))
        assert layers == sorted(layers, reverse=True)
        assert fold.id == fold.members[0]
        reached, grown = {fold.id}, True
        while grown:
            touching = {(c.parent, c.child) for c in carries if {c.parent, c.child} & reached}
            grown = not {name for pair in touching for name in pair} <= reached
            reached |= {name for pair in touching for name in pair}
        assert reached == set(fold.members)
    assert folded.edges == tuple(
        found for found in document.edges if place[found.parent] != place[found.child]
    )


def test_a_cycle_is_refused_before_anything_is_counted() -> None:
    document = graph(
        [HIGH, MIDDLE], [edge(HIGH.id, MIDDLE.id), edge(MIDDLE.id, HIGH.id), edge(HIGH.id, "target")]
    )
    for function in (depth, contract, summarise):
        with pytest.raises(MicroscopeError) as refusal:
            function(document)
        assert refusal.value.code == "graph_cycle"


def test_a_long_chain_needs_no_deep_stack() -> None:
    names = ["target", *(f"resid_post.3:{number}@0" for number in range(5000))]
    edges = [edge(parent, child, **SHOWN) for child, parent in pairwise(names)]
    document = graph([replace(LOW, id=name) for name in names[1:]], edges)
    assert depth(document) == 5000
    assert len(contract(document).folds) == 5001


def pearson_of_ranks(first: list[float], second: list[float]) -> float:
    """Spearman's correlation from counts of smaller and equal values."""

    def ranks(values: list[float]) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    return statistics.correlation(ranks(first), ranks(second))


@pytest.mark.parametrize("seed", range(30))
def test_spearman_with_ties_is_pearson_of_ranks(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.randint(3, 60)
    first = [float(rng.randint(-4, 4)) for _ in range(count)]
    second = [a + rng.choice((0.0, 1.0, rng.gauss(0, 3))) for a in first]
    if len(set(first)) > 1 and len(set(second)) > 1:
        assert spearman(first, second) == pytest.approx(pearson_of_ranks(first, second), abs=1e-12)


def test_spearman_known_values() -> None:
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207826816681233, abs=1e-12)
    assert spearman([1.0, 2.0], [1.0, 2.0]) is None
    assert spearman([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert spearman([1, 10, 100], [-1, -2, -3]) == -1


def test_the_summary_counts_measured_edges_only() -> None:
    document = chain(
        VERIFIED | {"attribution": 2.0, "measured": 1.0},
        SHOWN | {"attribution": 1.0, "measured": 0.5, "verdict": "weak"},
        REFUTED | {"attribution": -1.0, "measured": 0.0},
    )
    document = replace(
        document, edges=(*document.edges, edge(LOW.id, HIGH.id, 9.0)), summary=Summary(seconds=7.0)
    )
    found = summarise(document, first_seconds=0.5)
    assert (found.measured, found.verified, found.depth) == (3, 2, 2)
    assert found.spearman == pytest.approx(1.0)
    assert found.sign_agreement == pytest.approx(2 / 3)
    assert (found.first_seconds, found.seconds) == (0.5, 7.0)
    assert found.error_share is None


def test_nothing_measured_is_not_a_number() -> None:
    found = summarise(graph([HIGH], [edge(HIGH.id, "target")]))
    assert (found.spearman, found.sign_agreement, found.measured, found.depth) == (None, None, 0, 0)


def test_the_error_share_is_over_all_accounts_that_tell() -> None:
    document = random_graph(5)
    told = list(document.accounts)
    expected = sum(a.absolute_errors or 0.0 for a in told) / sum(a.absolute for a in told)
    assert 0 < expected < 1
    assert error_share(document) == pytest.approx(expected)
    silent = replace(document, accounts=(*told[1:], replace(told[0], absolute_errors=None)))
    others = sum(a.absolute_errors or 0.0 for a in told[1:]) / sum(a.absolute for a in told[1:])
    assert error_share(silent) == pytest.approx(others)


def test_edges_into_the_two_ends_of_a_score_are_two_edges() -> None:
    both = [edge(HIGH.id, "target", side=side, **VERIFIED) for side in ("query", "key")]
    document = graph([HIGH], both)
    assert depth(document) == 1
    assert [isinstance(found, Edge) and found.side for found in contract(document).edges] == ["query", "key"]
