"""A graph, piece by piece: the first picture, further hops, then what the running model says to each edge."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs import (
    Account,
    Graph,
    GraphSae,
    GraphTarget,
    GraphToken,
    GraphUpdate,
    Node,
    summarise,
    updated,
)
from microscope.live.run import PromptRun
from microscope.models import BlockRunner, LoadedModel, runner_for
from microscope.models.precision import dtype_name
from microscope.params.provenance import MlpRule
from microscope.provenance.components import components
from microscope.provenance.cuts import Explained
from microscope.provenance.hops import Hop, Upstream
from microscope.provenance.passes import PromptPass
from microscope.provenance.targets import TARGET, resolve
from microscope.provenance.verification import Verification
from microscope.sae import SparseAutoencoder

# What is missing of a sum, relative to the sizes of its parts, when something was not held constant.
_UNHELD = 1e-3
# Of parents further up, this part of ``shown`` is shown of each.
_FURTHER, _FEWEST = 4, 4


@dataclass(frozen=True)
class Limits:
    """How much of a graph is made.

    Args:
        hops: SAEs down from the target.
        parents: features of a hop whose own parents are looked for.
        shown: features shown of the target; of each further one a quarter.
    """

    hops: int = 2
    parents: int = 8
    shown: int = 40

    def of_hop(self, number: int) -> int:
        """Features shown of each number that a hop explains."""
        return self.shown if number == 1 else max(_FEWEST, self.shown // _FURTHER)


@dataclass
class _Influence:
    """How much each node matters to the target: products of shares along paths, as sizes."""

    of: dict[str, float] = field(default_factory=lambda: {TARGET: 1.0})

    def add(self, hop: Hop) -> None:
        """Take in a hop's edges."""
        scale = {(a.node, a.side): abs(a.value - a.constant) or 1.0 for a in hop.accounts}
        for edge in hop.edges:
            share = abs(edge.attribution) / scale[edge.child, edge.side]
            self.of[edge.parent] = self.of.get(edge.parent, 0.0) + share * self.of[edge.child]

    def most(self, nodes: Sequence[Node], count: int) -> list[Node]:
        """The features that matter most."""
        features = [node for node in nodes if node.kind == "feature"]
        return sorted(features, key=lambda node: -self.of[node.id])[:count]


def explain(
    loaded: LoadedModel,
    tokens: Sequence[int],
    target: GraphTarget,
    saes: Mapping[str, SparseAutoencoder],
    *,
    prompt: str = "",
    names: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    mlp: MlpRule = "gradient",
    verify: bool = True,
    runner: BlockRunner | None = None,
    baseline: PromptRun | None = None,
) -> Iterator[Graph | GraphUpdate]:
    """Explain a target by the features of SAEs below it.

    Attributions are computed in float32 with attention patterns and norms held constant, and with ``gates`` what
    makes MLPs nonlinear, too (:mod:`microscope.provenance.freeze`); verdicts come from the model as it runs, nothing held.

    Args:
        loaded: the model.
        tokens: ids of the prompt.
        target: what to explain.
        saes: SAEs and transcoders by fingerprint. Those above the target are left out.
        prompt: the text, kept in the graph.
        names: what people call the SAEs, by fingerprint.
        limits: how much to make.
        mlp: how MLPs are passed.
        verify: whether to ablate parents on the running model.
        runner: the running model; None takes the fastest that is proven.
        baseline: its unpatched run of the prompt, where one is at hand.

    Yields:
        First a graph with the target's exact components and its parents, then what it gains.

    Raises:
        MicroscopeError: what :func:`resolve` and :class:`Upstream` raise.
    """
    started = time.perf_counter()
    limits = limits or Limits()
    held = PromptPass(loaded, tokens)
    wrapped = set(loaded.tokenizer.all_special_ids)
    special = torch.tensor([token in wrapped for token in tokens], device=loaded.device)
    target, numbers, node = resolve(held, target, saes, special)
    upstream = Upstream(held, saes, numbers[0], special, limits.hops, mlp)
    listed = {cut.name: cut.sae for cut in upstream.cuts}
    if target.kind == "feature":
        listed[target.sae] = saes[target.sae]
    described = tuple(_described(name, sae, names or {}) for name, sae in listed.items())
    graph, influence = _first(held, target, numbers, node, upstream, limits, prompt)
    graph = replace(graph, saes=described)
    graph = _timed(graph, started)
    yield graph
    known = [n for n in graph.nodes if n.hop == 1]
    for number in range(2, limits.hops + 1):
        chosen = [
            n for n in influence.most(known, limits.parents) if upstream.has_parents(upstream.explained(n))
        ]
        if not chosen:
            break
        hop = upstream.hop([upstream.explained(n) for n in chosen], number, limits.of_hop(number))
        influence.add(hop)
        update = GraphUpdate(
            phase="hop",
            done=number,
            total=limits.hops,
            nodes=_new(graph, hop.nodes),
            edges=tuple(hop.edges),
            accounts=tuple(hop.accounts),
            notes=tuple(_unheld(loaded, upstream.mlp, hop.accounts)),
        )
        graph = updated(graph, update)
        yield update
        known = [n for n in graph.nodes if n.hop == number]
    notes: tuple[str, ...] = ()
    if verify and graph.edges:
        try:
            running = runner or runner_for(loaded)
        except MicroscopeError as error:
            notes = (f"No edge was verified: {error}",)
        else:
            checked = Verification(held, graph, upstream, saes, running, baseline)
            for update in checked.updates():
                graph = updated(graph, update)
                yield update
    summary = summarise(graph, seconds=time.perf_counter() - started)
    yield GraphUpdate(phase="done", done=1, total=1, summary=summary, notes=notes)


def _first(
    held: PromptPass,
    target: GraphTarget,
    numbers: Sequence[Explained],
    node: Node,
    upstream: Upstream,
    limits: Limits,
    prompt: str,
) -> tuple[Graph, _Influence]:
    """The first picture: components and direct parents."""
    loaded = held.loaded
    found = [components(held, e) for e in numbers]
    explained = [e for e in numbers if upstream.has_parents(e)]
    hop = upstream.hop(explained, 1, limits.of_hop(1)) if explained else Hop()
    influence = _Influence()
    influence.add(hop)
    runs_in = dtype_name(loaded.dtype)
    graph = Graph(
        model=loaded.reference,
        model_fingerprint=loaded.fingerprint,
        prompt=prompt,
        tokens=tuple(GraphToken(token=t, text=loaded.texts(t)) for t in held.tokens),
        target=target,
        n_layers=loaded.n_layers,
        runs_in=runs_in,
        mlp=upstream.mlp,
        nodes=(node, *_unique(hop.nodes)),
        edges=tuple(hop.edges),
        components=tuple(c for listed, _ in found for c in listed),
        completeness=max((ratio for _, ratio in found), key=lambda ratio: abs(ratio - 1)),
        accounts=tuple(hop.accounts),
        notes=(*_notes(loaded, upstream, numbers), *_unheld(loaded, upstream.mlp, hop.accounts)),
    )
    return graph, influence


def _described(name: str, sae: SparseAutoencoder, names: Mapping[str, str]) -> GraphSae:
    config = sae.config
    site_out = config.site_out or config.site
    title = names.get(name, config.site)
    return GraphSae(
        fingerprint=name, name=title, site=config.site, site_out=site_out, n_latents=config.n_latents
    )


def _notes(loaded: LoadedModel, upstream: Upstream, numbers: Sequence[Explained]) -> Iterator[str]:
    """What a reader should know of a graph's making."""
    site = numbers[0].site
    if not upstream.cuts:
        yield f"No SAE lies below the target ({site}): its parents are the tokens themselves."
    elif len(upstream.cuts) == 1:
        yield f"One SAE lies below the target ({site}): behind its features come the tokens themselves."
    if loaded.quantisation is not None:
        yield (
            f"The model's weights are rounded ({loaded.quantisation}), and attributions are computed in its own "
            "arithmetic, not in float32."
        )
    elif loaded.dtype != torch.float32:
        yield f"The model runs in {dtype_name(loaded.dtype)}; attributions are computed in float32."


def _unheld(loaded: LoadedModel, mlp: MlpRule, accounts: Sequence[Account]) -> Iterator[str]:
    """Whether blocks hold nonlinear parts that the freeze does not know: then sums miss what they should be."""
    off = max((abs(a.missing) / a.absolute for a in accounts if a.absolute), default=0.0)
    if mlp == "gates" and off > _UNHELD and loaded.quantisation is None:
        yield (
            "Blocks of this model hold nonlinear parts besides attention, norms and gates. Through them attributions "
            f"are gradients and miss up to {off:.1%} of what they sum over: see the completeness of each node."
        )


def _unique(nodes: Sequence[Node]) -> list[Node]:
    return list({node.id: node for node in reversed(nodes)}.values())[::-1]


def _new(graph: Graph, nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes that a graph does not have yet."""
    known = {node.id for node in graph.nodes}
    return tuple(node for node in _unique(nodes) if node.id not in known)


def _timed(graph: Graph, started: float) -> Graph:
    return replace(graph, summary=replace(graph.summary, first_seconds=time.perf_counter() - started))
