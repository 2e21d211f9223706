"""What the running model says to each edge of a graph: parents are ablated, and children read again."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace
from torch import Tensor

from microscope.graphs import Edge, Graph, GraphUpdate, Node, Side
from microscope.graphs.document import Verdict
from microscope.live.run import PromptRun, run_baseline
from microscope.models import BlockRunner
from microscope.params import Site
from microscope.provenance.ablation import Ablation, Ablations, Hold
from microscope.provenance.cuts import Cut
from microscope.provenance.hops import Upstream
from microscope.provenance.passes import PromptPass
from microscope.provenance.readings import readings_of, sites_of
from microscope.provenance.targets import TARGET
from microscope.sae import SparseAutoencoder

STRENGTHS = (0.5, 1.0, 2.0)
"""Multiples of a parent that are removed."""
LEAST = 0.05
"""From which part of a child's size on an effect is more than weak."""
CONTROLS, PERCENTILE = 32, 0.95
"""Matched random features, and how many of them an effect has to exceed."""
# An effect on the target below this part of its size is not divided by.
_LEAST_SHARED = 1e-3
# One set of random features serves sizes within the root of this factor.
SIZE_STEP = 1.5

Child = tuple[str, Side]
# A row by what was done: a parent at a strength, a parent with a feature held, a random feature of a size.
_Row = tuple[str, float | str] | tuple[float, int]


def verdict(
    attribution: float, effects: Mapping[float, float], scale: float, control: float
) -> tuple[Verdict, bool]:
    """What the effects of removing a parent show, and whether that verifies its edge.

    *causal*: at every strength the child moves as predicted, and at strength 1 by at least 5 % of its scale and
    at least as far as the 95th percentile of matched random features moves it. *weak*: at strength 1 as predicted and
    at least that far, but by less than 5 %, or not as predicted at all strengths. *not shown*: everything else.

    Args:
        attribution: what was predicted.
        effects: what removing took from the child, by strength; 1 is among them.
        scale: the child's size.
        control: the 95th percentile of what matched random features did, as a size.
    """
    effect = effects[1.0]
    if not effect * attribution > 0 or abs(effect) < control:
        return "not shown", False
    steady = all(e * attribution > 0 for e in effects.values())
    return ("causal" if steady and abs(effect) >= LEAST * scale else "weak"), True


def percentile(sizes: Sequence[float]) -> float:
    """The 95th percentile of which some sizes are a sample: one more would exceed it with a probability of 5 %.

    That is between the two largest of 32 (Weibull's plotting positions, ``0.95·(n + 1)``); the largest below 19.
    """
    ranked = sorted(sizes)
    place = min(PERCENTILE * (len(ranked) + 1) - 1, len(ranked) - 1)
    low = math.floor(place)
    return ranked[low] + (place - low) * (ranked[min(low + 1, len(ranked) - 1)] - ranked[low])


@dataclass
class _Parent:
    """Something that is removed: ``taken`` ``[width]`` is what it adds, ``size`` its norm."""

    node: Node
    taken: Tensor
    edges: list[Edge] = field(default_factory=list)

    @property
    def size(self) -> float:
        return float(self.taken.norm())

    @property
    def reference(self) -> float | None:
        """The size at which its random features are measured: a power of 1.5, up to 22 % off.

        None where there is nothing to remove: in the precision that the model runs in, the feature is silent.
        """
        return SIZE_STEP ** round(math.log(self.size, SIZE_STEP)) if self.size else None


@dataclass
class _Place:
    """Parents at one site and position."""

    site: Site
    position: int
    parents: list[_Parent] = field(default_factory=list)


class Verification:
    """Measures the edges of a graph on the running model, nothing held constant.

    A parent is removed at its position with the SAE's error kept, as the edit ``ablate`` does it: a feature's
    ``f·d`` of the running model is taken from where its SAE writes; of an error node what the SAE leaves over, of
    an embedding all of it. All children are read in the same run.

    Random features of the same SAE at the same position, which are silent there, are written in the same place and
    scaled to the parent's norm; where there is no SAE, or too few of its features are silent, random directions are. One set of them is measured for
    parents whose sizes are within 22 % of its own, and its effects are taken to grow in proportion to the size.

    An edge into a parent of the target is also measured with its child held: ``q → p`` is mediated to the share
    ``1 − held/total`` of what removing ``q`` takes from the child of ``p`` on the strongest path to the target.

    Args:
        held: the prompt.
        graph: what was found.
        upstream: its SAEs.
        saes: all of them by fingerprint, the target's among them.
        runner: the running model.
        baseline: its unpatched run of the prompt; made when it is not given.
    """

    def __init__(
        self,
        held: PromptPass,
        graph: Graph,
        upstream: Upstream,
        saes: Mapping[str, SparseAutoencoder],
        runner: BlockRunner,
        baseline: PromptRun | None = None,
    ) -> None:
        if baseline is None:
            tokens = torch.tensor(held.tokens, device=held.loaded.device)
            baseline = run_baseline(runner, tokens, upstream.special)
        self._nodes = {node.id: node for node in graph.nodes}
        sites = sites_of(graph, saes)
        places = {site for cut in upstream.cuts for site in (cut.reads, cut.writes)}
        parents = {_site(self._nodes[e.parent]) for e in graph.edges if _measurable(self._nodes[e.parent])}
        self._last = graph.target.position
        self._ablations = Ablations(held.loaded, runner, baseline, self._last, sites | places | parents)
        seen = self._ablations.unchanged
        self._cuts: dict[str, Cut] = {}
        for cut in upstream.cuts:
            self._cuts[cut.name] = live = Cut(cut.name, cut.sae, cut.special[: self._last + 1])
            with torch.inference_mode():
                live.fill(*(seen.at_sites[site][0].float() for site in (cut.reads, cut.writes)))
        self._readings = readings_of(graph, held, runner, saes, seen)
        with torch.inference_mode():
            self._unchanged = {name: float(r.of(seen)[0]) for name, r in self._readings.items()}
        self._influence = _influence(graph)
        self._best: dict[str, Edge] = {}
        for edge in graph.edges:
            known = self._best.get(edge.parent)
            if known is None or self._influence[edge.key] > self._influence[known.key]:
                self._best[edge.parent] = edge
        self._edges = [edge for edge in graph.edges if _measurable(self._nodes[edge.parent])]

    def updates(self) -> Iterator[GraphUpdate]:
        """Measured edges, those that matter most first; a batch each, of which some may end no edge."""
        done = 0
        yield GraphUpdate(phase="verify", done=done, total=len(self._edges))
        for place in self._places():
            for edges in self._measured(place):
                done += len(edges)
                yield GraphUpdate(phase="verify", done=done, total=len(self._edges), edges=tuple(edges))

    def _places(self) -> list[_Place]:
        """Where parents are, by the edge that matters most, and so within each."""
        found: dict[tuple[Site, int], _Place] = {}
        parents: dict[str, _Parent] = {}
        for edge in sorted(self._edges, key=lambda edge: -self._influence[edge.key]):
            node = self._nodes[edge.parent]
            if node.id not in parents:
                assert node.position is not None
                site = _site(node)
                place = found.setdefault((site, node.position), _Place(site, node.position))
                parents[node.id] = _Parent(node, self._taken(node, node.position))
                place.parents.append(parents[node.id])
            parents[node.id].edges.append(edge)
        return list(found.values())

    def _taken(self, node: Node, position: int) -> Tensor:
        cut = self._cuts.get(node.sae)
        if cut is None:
            return self._ablations.unchanged.at(_site(node), position)[0]
        if node.kind == "feature":
            assert node.index is not None
            return cut.contribution(node.index, position)
        return cut.error[position]

    # --- one place ------------------------------------------------------------------------------------

    def _measured(self, place: _Place) -> Iterator[list[Edge]]:
        """The edges of the parents at one place, batch by batch."""
        rows = list(self._rows(place))
        children = self._children(place)
        readings = {child: self._readings[child] for child in children}
        sites = {reading.site for reading in readings.values()}
        most = self._ablations.most_rows(place.site, place.position, sites)
        effects: dict[_Row, dict[Child, float]] = {}
        waiting = list(place.parents)
        for first in range(0, len(rows), most):
            batch = rows[first : first + most]
            seen = self._ablations.run(place.site, place.position, [row for _, row in batch], sites)
            with torch.inference_mode():
                read = {child: reading.of(seen).tolist() for child, reading in readings.items()}
            for number, (name, _) in enumerate(batch):
                effects[name] = {
                    child: self._unchanged[child] - values[number] for child, values in read.items()
                }
            done = [p for p in waiting if all(name in effects for name, _ in self._rows_of(p))]
            waiting = [p for p in waiting if p not in done]
            yield [self._judged(p, edge, effects) for p in done for edge in p.edges]

    def _rows(self, place: _Place) -> Iterator[tuple[_Row, Ablation]]:
        """Everything to run, each parent behind the random features that it is compared with."""
        known: set[float] = set()
        for parent in place.parents:
            reference = parent.reference
            if reference is not None and reference not in known:
                known.add(reference)
                for number, direction in enumerate(self._random(place, parent)):
                    yield (reference, number), Ablation(reference * direction)
            yield from self._rows_of(parent)

    def _rows_of(self, parent: _Parent) -> Iterator[tuple[_Row, Ablation]]:
        name = parent.node.id
        for strength in STRENGTHS:
            yield (name, strength), Ablation(strength * parent.taken)
        for edge in parent.edges:
            if edge.hop > 1:
                child = self._nodes[edge.child]
                assert child.index is not None
                assert child.position is not None
                hold = Hold(self._cuts[child.sae], child.index, child.position)
                yield (name, edge.child), Ablation(parent.taken, hold)

    def _random(self, place: _Place, parent: _Parent) -> Tensor:
        """Directions of random features that are silent at a position, ``[features, width]`` of length 1."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{place.site}@{place.position}".encode()))
        cut = self._cuts.get(parent.node.sae)
        found = parent.taken.new_zeros((0, len(parent.taken)))
        if cut is not None:
            firing = set(cut.codes.indices[place.position][cut.codes.values[place.position] > 0].tolist())
            order = torch.randperm(cut.sae.config.n_latents, generator=generator).tolist()
            silent = [index for index in order if index not in firing]
            found = cut.sae.W_dec.detach()[silent[: 4 * CONTROLS]]
            found = found[found.norm(dim=1) > 0][:CONTROLS]
        if len(found) < CONTROLS:
            missing = torch.randn(CONTROLS - len(found), found.shape[1], generator=generator)
            found = torch.cat((found, missing.to(found)))
        return found / found.norm(dim=1, keepdim=True)

    def _children(self, place: _Place) -> list[Child]:
        """What is read: the children of all edges, and what mediation looks at."""
        found: dict[Child, None] = {}
        for edge in (edge for parent in place.parents for edge in parent.edges):
            found[edge.child, edge.side] = None
            if edge.hop > 1:
                found[self._through(edge)] = None
        return list(found)

    def _through(self, edge: Edge) -> Child:
        """The child of an edge's child on the strongest path."""
        best = self._best[edge.child]
        return best.child, best.side

    def _judged(self, parent: _Parent, edge: Edge, effects: Mapping[_Row, Mapping[Child, float]]) -> Edge:
        name, child = parent.node.id, (edge.child, edge.side)
        found = {strength: effects[name, strength][child] for strength in STRENGTHS}
        reference, control = parent.reference, 0.0
        if reference is not None:
            random = [abs(e[child]) for row, e in effects.items() if row[0] == reference]
            control = percentile(random) * parent.size / reference
        words, verified = verdict(edge.attribution, found, self._readings[child].scale, control)
        mediated = None
        if edge.hop > 1:
            through = self._through(edge)
            total, held = (effects[name, how][through] for how in (1.0, edge.child))
            if abs(total) > _LEAST_SHARED * self._readings[through].scale:
                mediated = 1 - held / total
        return replace(
            edge,
            verdict=words,
            verified=verified,
            measured=found[1.0],
            control=control,
            mediated=mediated,
            strengths=STRENGTHS,
            effects=tuple(found.values()),
        )


def _measurable(node: Node) -> bool:
    """Whether a node can be removed: a constant is there whatever the prompt, so removing it shows no cause."""
    return node.kind in ("feature", "error", "embedding")


def _site(node: Node) -> Site:
    return Site.parse(node.site) if node.site else Site("resid_post", -1)


def _influence(graph: Graph) -> dict[tuple[str, str, str], float]:
    """How much each edge matters to the target: its share of its child, times the child's influence."""
    scale = {(a.node, a.side): abs(a.value - a.constant) or 1.0 for a in graph.accounts}
    of: defaultdict[str, float] = defaultdict(float, {TARGET: 1.0})
    found = {}
    for edge in sorted(graph.edges, key=lambda edge: edge.hop):
        found[edge.key] = abs(edge.attribution) / scale[edge.child, edge.side] * of[edge.child]
        of[edge.parent] += found[edge.key]
    return found
