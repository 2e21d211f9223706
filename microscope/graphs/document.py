"""The document of a provenance graph: what is saved, sent, drawn and exported. Imports no torch.

Attributions and values are in the units of what they explain: a feature's pre-activation, a logit, an
attention score before the softmax.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from microscope.params.fields import Integer
from microscope.params.provenance import MlpRule

NodeKind = Literal["target", "feature", "error", "bias", "embedding", "mlp", "head", "block"]
PartKind = Literal["direct", "head", "mlp", "block", "other"]
Verdict = Literal["causal", "weak", "not shown"]
Side = Literal["", "query", "key"]


class _Value(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=False):
    """A piece of a graph."""


class GraphToken(_Value, frozen=True):
    """One token of the prompt."""

    token: int
    text: str


class GraphSae(_Value, frozen=True):
    """An SAE or transcoder whose latents are nodes. A transcoder reads ``site`` and writes ``site_out``."""

    fingerprint: str
    name: str
    site: str
    site_out: str
    n_latents: int


class GraphTarget(_Value, frozen=True, forbid_unknown_fields=True):
    """What is explained.

    ``kind`` says which fields count: ``feature`` (``sae``, ``index``), ``token`` (``token``), ``difference``
    (``token`` less ``against``), ``attention`` (``layer``, ``head``, from ``position`` to ``key``) or
    ``direction`` (``vector`` ``[d]`` at the residual stream behind block ``layer``). ``position`` counts tokens of
    the prompt from 0; −1 is the last.
    """

    kind: Literal["feature", "token", "difference", "attention", "direction"]
    position: Integer = -1
    sae: str = ""
    index: Integer | None = None
    token: Integer | None = None
    against: Integer | None = None
    layer: Integer | None = None
    head: Integer | None = None
    key: Integer | None = None
    vector: tuple[float, ...] = ()


class Node(_Value, frozen=True):
    """Something that contributes.

    ``target`` is what is explained. ``feature``, ``error`` and ``bias`` belong to an SAE's ``site``: one latent,
    what the SAE leaves over, and its own constant. ``embedding`` is a token itself, below all SAEs. All but ``bias``
    have a ``position``.
    ``layer`` is the block behind which the node is read; a token's logit has the number of blocks.

    Args:
        hop: how many SAEs lie between it and the target, plus one; 0 for the target.
        activation: of a feature, in the SAE's units.
        value: what its own attributions explain: the pre-activation of a feature, the target's value.
        probability: of a token's logit: what the softmax makes of it.
    """

    id: str
    kind: NodeKind
    layer: int
    position: int | None = None
    site: str = ""
    sae: str = ""
    index: int | None = None
    hop: int = 0
    activation: float | None = None
    value: float | None = None
    probability: float | None = None
    text: str = ""


class Part(_Value, frozen=True):
    """The share of an edge that first passes through one head or MLP behind its parent; ``direct`` passes none.

    ``other`` sums the small ones."""

    kind: PartKind
    attribution: float
    layer: int | None = None
    head: int | None = None


class Edge(_Value, frozen=True):
    """What a parent contributes to a child, and what became of it on the running model.

    Args:
        parent, child: ids of nodes; ``from`` and ``to`` in JSON.
        attribution: predicted change of the child's value when the parent is removed, with the sign turned.
        parts: the same by what it passes; they sum to it.
        side: of a target that is an attention score: which of its two ends the parent reaches.
        carry: the same direction found again one SAE higher, not computed in between.
        measured: what removing the parent took from the child on the running model, nothing frozen; None while
            it was not measured.
        verified: whether the verdict is causal or weak; None while it was not measured.
        control: what the 95th percentile of matched random features did, as a size.
        mediated: of an edge into a parent of the target: which share of its effect on the target went through
            this parent.
        strengths, effects: the sweep: which multiples of the parent were removed, and what that took.
    """

    parent: str = msgspec.field(name="from")
    child: str = msgspec.field(name="to")
    attribution: float
    hop: int
    parts: tuple[Part, ...] = ()
    side: Side = ""
    carry: bool = False
    verified: bool | None = None
    verdict: Verdict | None = None
    measured: float | None = None
    control: float | None = None
    mediated: float | None = None
    strengths: tuple[float, ...] = ()
    effects: tuple[float, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other edges."""
        return self.parent, self.child, self.side


class Component(_Value, frozen=True):
    """One exact component of the target: the embedding, a head by the position it read, an MLP, biases; ``other`` sums
    those that are too small to be listed."""

    kind: Literal["embedding", "head", "attention", "mlp", "block", "bias", "other"]
    attribution: float
    layer: int | None = None
    head: int | None = None
    position: int | None = None
    side: Side = ""


class Account(_Value, frozen=True):
    """How far the attributions of one node add up.

    ``value − constant`` is what is to be explained: ``constant`` holds what no parent could change (the encoder's
    bias). ``features`` holds embeddings, too, where those are the parents; ``features``, ``errors`` and ``biases`` sum over *all* parents, shown or not; ``modules`` are biases of
    the blocks in between. ``shown`` sums the edges of the graph, ``absolute`` the sizes of all attributions,
    ``absolute_errors`` the sizes of those of error nodes; None where that is not known.
    """

    node: str
    value: float
    constant: float
    features: float
    errors: float
    biases: float
    modules: float
    shown: float
    absolute: float
    absolute_errors: float | None = None
    side: Side = ""

    @property
    def completeness(self) -> float:
        """(features + errors + biases + modules) / (value − constant); 1 where nothing is to be explained."""
        wanted = self.value - self.constant
        return (wanted - self.missing) / wanted if wanted else 1.0

    @property
    def missing(self) -> float:
        """What the attributions do not explain of ``value − constant``."""
        found = self.features + self.errors + self.biases + self.modules
        return self.value - self.constant - found


class Summary(_Value, frozen=True):
    """What the verification found.

    Args:
        depth: hops on the longest path of verified edges, carries not counted.
        spearman: rank correlation of predicted and measured effects over ``measured`` edges; None below three.
        sign_agreement: share of them with the same sign.
        error_share: of all sizes of attributions, those of error nodes.
        seconds: until the first picture, and until the end.
    """

    depth: int = 0
    spearman: float | None = None
    sign_agreement: float | None = None
    measured: int = 0
    verified: int = 0
    error_share: float | None = None
    first_seconds: float | None = None
    seconds: float | None = None


class Foreign(_Value, frozen=True):
    """What an attribution graph of another program held that has no field here: given back when it is exported.

    ``nodes`` are by id; ``other`` are whole parts of the file that nobody here knows.
    """

    metadata: dict[str, Any] = {}
    params: dict[str, Any] = {}
    nodes: dict[str, dict[str, Any]] = {}
    other: dict[str, Any] = {}


class Graph(msgspec.Struct, kw_only=True, frozen=True):
    """A whole graph.

    ``completeness`` is that of the exact components of the target. ``precision`` is what attributions were
    computed in, ``runs_in`` what the model runs in. ``notes`` are sentences a reader should see: SAEs that are
    missing, what was left out. ``foreign`` is there where the graph came from a file of another program.
    """

    format: Literal["microscope-graph"] = "microscope-graph"
    version: Literal[1] = 1
    model: str
    model_fingerprint: str
    prompt: str
    tokens: tuple[GraphToken, ...]
    target: GraphTarget
    n_layers: int
    saes: tuple[GraphSae, ...] = ()
    precision: str = "float32"
    runs_in: str = "float32"
    mlp: MlpRule = "gradient"
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    components: tuple[Component, ...] = ()
    completeness: float | None = None
    accounts: tuple[Account, ...] = ()
    summary: Summary = Summary()
    notes: tuple[str, ...] = ()
    foreign: Foreign | None = None

    def node(self, name: str) -> Node:
        """The node of an id; raises :class:`KeyError`."""
        for node in self.nodes:
            if node.id == name:
                return node
        raise KeyError(name)


class GraphUpdate(msgspec.Struct, kw_only=True, frozen=True):
    """What a graph under way gains: nodes, edges and accounts replace those of the same key.

    ``phase`` says what comes next: ``components``, ``hop``, ``verify`` or ``done``; ``done`` of ``total`` steps of
    it have been made.
    """

    phase: Literal["components", "hop", "verify", "done"]
    done: int = 0
    total: int = 0
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    accounts: tuple[Account, ...] = ()
    components: tuple[Component, ...] = ()
    completeness: float | None = None
    summary: Summary | None = None
    notes: tuple[str, ...] = ()


def updated(graph: Graph, update: GraphUpdate) -> Graph:
    """A graph with what an update adds or replaces; the order of first appearance is kept."""
    nodes = {n.id: n for n in graph.nodes} | {n.id: n for n in update.nodes}
    edges = {e.key: e for e in graph.edges} | {e.key: e for e in update.edges}
    accounts = {(a.node, a.side): a for a in graph.accounts} | {(a.node, a.side): a for a in update.accounts}
    return msgspec.structs.replace(
        graph,
        nodes=tuple(nodes.values()),
        edges=tuple(edges.values()),
        accounts=tuple(accounts.values()),
        components=update.components or graph.components,
        completeness=graph.completeness if update.completeness is None else update.completeness,
        summary=update.summary or graph.summary,
        notes=(*graph.notes, *(note for note in update.notes if note not in graph.notes)),
    )


class Contributor(_Value, frozen=True):
    """One end of an attention score's contributor: a component of the stream at that position, or a feature.

    ``attribution`` is its marginal: summed over everything at the other end, constants included. ``other`` sums those
    that are not listed.
    """

    kind: Literal["embedding", "head", "attention", "mlp", "block", "feature", "error", "bias", "other"]
    attribution: float
    layer: int | None = None
    head: int | None = None
    index: int | None = None
    sae: str = ""


class AttendedPair(_Value, frozen=True):
    """What a query contributor and a key contributor make of a score together; both count in the lists."""

    query: int
    key: int
    attribution: float


class Attended(_Value, frozen=True):
    """Why one head attends from one position to another.

    ``score`` is the number in front of the softmax, without the mask; ``weight`` what the softmax makes of it.
    Pairs of contributors, the query bias and the key bias among them, sum to ``bilinear``, and
    ``score = bilinear + position_term``: the latter is what a model adds by distance alone (ALiBi). Each list's
    attributions sum to ``bilinear``, too. Where scores are bounded (soft cap), ``score`` is the one in front of
    the bound.
    """

    layer: int
    head: int
    query: int
    key: int
    score: float
    weight: float
    bilinear: float
    position_term: float
    query_contributors: tuple[Contributor, ...]
    key_contributors: tuple[Contributor, ...]
    pairs: tuple[AttendedPair, ...]
