"""The numbers that a graph explains, read off the running model's batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microscope.graphs import Graph, GraphTarget, Node, Side
from microscope.models import BlockRunner
from microscope.params import Site
from microscope.provenance.ablation import Seen
from microscope.provenance.passes import PromptPass
from microscope.provenance.targets import score_operands
from microscope.sae import SparseAutoencoder

# Rows whose whole vocabulary is held at once.
_HEAD_ROWS = 16


class Reading(ABC):
    """A number, and where it is read.

    Attributes:
        site, position: where.
        scale: how large it is, for saying what a small change is.
    """

    site: Site
    position: int
    scale: float

    @abstractmethod
    def of(self, seen: Seen) -> Tensor:
        """In every row of a batch, ``[rows]`` in float32."""


@dataclass
class FeatureReading(Reading):
    """A feature's pre-activation, its row's norm as it is in each row; its scale is the activation."""

    sae: SparseAutoencoder
    index: int
    position: int
    scale: float

    def __post_init__(self) -> None:
        self.site = Site.parse(self.sae.config.site)

    def of(self, seen: Seen) -> Tensor:
        x = seen.at(self.site, self.position)
        return self.sae.pre_activation(self.sae.centred(self.sae.scaled(x)), self.index)


@dataclass
class LogitReading(Reading):
    """A logit, or the difference of two. The scale of a logit is its distance from the mean of all."""

    runner: BlockRunner
    position: int
    token: int
    against: int | None
    unchanged: Seen

    def __post_init__(self) -> None:
        self.site = Site("resid_post", self.runner.n_layers - 1)
        (logits,) = self._logits(self.unchanged)
        other = logits.mean() if self.against is None else logits[0, self.against]
        self.scale = float((logits[0, self.token] - other).abs())

    def of(self, seen: Seen) -> Tensor:
        return torch.cat([self._asked(logits) for logits in self._logits(seen)])

    def _asked(self, logits: Tensor) -> Tensor:
        found = logits[:, self.token]
        return found if self.against is None else found - logits[:, self.against]

    def _logits(self, seen: Seen) -> Iterator[Tensor]:
        """A few rows ``[rows, vocabulary]`` at a time."""
        for rows in seen.at_sites[self.site][:, self.position - seen.start].split(_HEAD_ROWS):
            yield self.runner.head(rows).float()


@dataclass
class DirectionReading(Reading):
    """The stream along a vector."""

    site: Site
    position: int
    vector: Tensor
    scale: float

    def of(self, seen: Seen) -> Tensor:
        return seen.at(self.site, self.position) @ self.vector


@dataclass
class ScoreReading(Reading):
    """An attention score as one of its ends moves it, the other end as it is in the unpatched run.

    Queries and keys are computed by the model's own block from the stream of each row, in float32, norms and all.
    """

    held: PromptPass
    layer: int
    head: int
    position: int
    key: int
    side: Side
    scale: float
    unchanged: Seen

    def __post_init__(self) -> None:
        self.site = Site("resid_post", self.layer - 1)

    def of(self, seen: Seen) -> Tensor:
        queries, keys, factor = self._ends(seen)
        query, key, _ = self._ends(self.unchanged)
        return (queries @ key[0] if self.side == "query" else keys @ query[0]) * factor

    def _ends(self, seen: Seen) -> tuple[Tensor, Tensor, float]:
        if "queries" not in seen.notes:
            whole = self.unchanged.at_sites[self.site][0].float()
            found = []
            for row in seen.at_sites[self.site].float():
                # What stands behind the last position that matters is not seen from it.
                x = torch.cat((whole[: seen.start], row))
                rest = self.held.input_of(self.layer)[len(x) :]
                block = self.held.again(self.layer, torch.cat((x, rest)))
                found.append(score_operands(block, self.head, self.position, self.key))
            queries, keys, factors = zip(*found, strict=True)
            seen.notes.update(
                queries=torch.stack(queries), keys=torch.stack(keys), factor=torch.tensor(factors[:1])
            )
        return seen.notes["queries"], seen.notes["keys"], float(seen.notes["factor"])


def readings_of(
    graph: Graph,
    held: PromptPass,
    runner: BlockRunner,
    saes: Mapping[str, SparseAutoencoder],
    unchanged: Seen,
) -> dict[tuple[str, Side], Reading]:
    """A reading for every node of a graph that edges lead to, by node and side.

    Args:
        graph: with its target's positions counted from 0.
        held: the prompt.
        runner: the running model.
        saes: by fingerprint.
        unchanged: the unpatched run.
    """
    nodes = {node.id: node for node in graph.nodes}
    found: dict[tuple[str, Side], Reading] = {}
    for edge in graph.edges:
        name = edge.child, edge.side
        if name not in found:
            node = nodes[edge.child]
            found[name] = (
                _target(graph.target, node, edge.side, held, runner, saes, unchanged)
                if node.kind == "target"
                else _feature(node, saes)
            )
    return found


def sites_of(graph: Graph, saes: Mapping[str, SparseAutoencoder]) -> set[Site]:
    """Where the children of a graph's edges are read."""
    nodes = {node.id: node for node in graph.nodes}
    return {_site(graph, nodes[edge.child], saes) for edge in graph.edges}


def _site(graph: Graph, node: Node, saes: Mapping[str, SparseAutoencoder]) -> Site:
    target = graph.target
    if node.kind != "target" or target.kind == "feature":
        return Site.parse(saes[node.sae].config.site)
    if target.kind == "attention":
        return Site("resid_post", (target.layer or 0) - 1)
    if target.kind == "direction":
        return Site("resid_post", target.layer or 0)
    return Site("resid_post", graph.n_layers - 1)


def _feature(node: Node, saes: Mapping[str, SparseAutoencoder]) -> Reading:
    assert node.index is not None
    assert node.position is not None
    return FeatureReading(saes[node.sae], node.index, node.position, abs(node.activation or 0.0))


def _target(
    target: GraphTarget,
    node: Node,
    side: Side,
    held: PromptPass,
    runner: BlockRunner,
    saes: Mapping[str, SparseAutoencoder],
    unchanged: Seen,
) -> Reading:
    value = abs(node.value or 0.0)
    if target.kind == "feature":
        return _feature(node, saes)
    if target.kind == "direction":
        assert target.layer is not None
        vector = torch.tensor(target.vector, device=held.embedded.device)
        return DirectionReading(Site("resid_post", target.layer), target.position, vector, value)
    if target.kind == "attention":
        assert target.layer is not None
        assert target.head is not None
        assert target.key is not None
        return ScoreReading(
            held, target.layer, target.head, target.position, target.key, side, value, unchanged
        )
    assert target.token is not None
    return LogitReading(runner, target.position, target.token, target.against, unchanged)
