"""An attribution graph of another program, taken over as a graph, with what somebody had arranged in it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope.errors import MicroscopeError
from microscope.graphs.attribution_graph import AttributionGraph, FileNode, Link, QParams, label_of
from microscope.graphs.checks import check
from microscope.graphs.document import Account, Edge, Foreign, Graph, GraphTarget, GraphToken, Node, NodeKind

MAX_PINS = 2000
MAX_GROUPS = 100
LARGEST_INDEX = 2**53
"""The largest number that a browser holds exactly."""

KINDS: dict[str, NodeKind] = {
    "logit": "target",
    "embedding": "embedding",
    "bias": "bias",
    "mlp": "mlp",
    "attention head": "head",
    "block": "block",
    "cross layer transcoder": "feature",
    "transcoder": "feature",
    "lorsa": "feature",
    "unexplored node": "feature",
    "mlp reconstruction error": "error",
    "lorsa error": "error",
}

OUTPUT = re.compile(r'Output "(.*)" \(p=[^()]*\)', re.DOTALL)


class GraphFile(msgspec.Struct, kw_only=True, frozen=True):
    """What a file held.

    ``view`` is what somebody arranged on its page (``pins``, ``groups``); ``notes`` say what had no place here, and
    are among the notes of the graph as well.
    """

    graph: Graph
    view: dict[str, Any]
    notes: tuple[str, ...] = ()


def malformed(why: str) -> MicroscopeError:
    """The error for a file that is no graph."""
    return MicroscopeError(
        "graph_file_malformed",
        f"The file holds no graph: {why[:300]}.",
        "Choose a graph saved here, or the attribution-graph JSON of circuit-tracer or Neuronpedia.",
    )


def taken_over(file: AttributionGraph, leftovers: Foreign) -> GraphFile:
    """The checked graph of an attribution graph.

    Raises:
        MicroscopeError: ``graph_target_missing``, ``graph_file_malformed``, or what
            :func:`microscope.graphs.check` raises.
    """
    notes: list[str] = []
    # what this program wrote itself comes back whole
    graph = file.metadata.microscope or replace(_heading(file, notes), foreign=leftovers)
    nodes = [_node(node, file, graph, notes) for node in file.nodes]
    kinds = {node.id: node.kind for node in nodes}
    nodes, edges = _with_hops(nodes, [_edge(link) for link in file.links], file)
    if file.metadata.microscope is None:
        accounts = tuple(_accounts(edges, kinds))
    else:
        accounts = tuple(account for account in graph.accounts if account.node in kinds)
    view = _view(file.qParams, kinds, notes)
    told = tuple(dict.fromkeys(notes))
    graph = replace(
        graph,
        nodes=tuple(nodes),
        edges=tuple(edges),
        accounts=accounts,
        notes=tuple(dict.fromkeys((*graph.notes, *told))),
    )
    check(graph)
    return GraphFile(graph=graph, view=view, notes=told)


def _heading(file: AttributionGraph, notes: list[str]) -> Graph:
    """A graph of a foreign file, still without nodes and edges."""
    targets = [node for node in file.nodes if node.feature_type == "logit"]
    if not targets:
        raise MicroscopeError(
            "graph_target_missing",
            "The file has no node of the type logit, so nothing says what it explains.",
            "Save the graph again with its logits.",
        )
    main = max(targets, key=lambda node: (bool(node.is_target_logit), node.token_prob or 0.0))
    layers = [_layer(node) for node in file.nodes if node.feature_type != "logit"]
    ids = {node.ctx_idx: _token_id(node) for node in file.nodes if node.feature_type == "embedding"}
    metadata = file.metadata
    scan = metadata.scan if isinstance(metadata.scan, str) else ", ".join(metadata.scan)
    sources = ", ".join(metadata.transcoder_list or []) or scan
    notes.append(
        f"Read from an attribution graph. Its latents belong to transcoders that it calls {sources[:200]}."
    )
    notes.append(
        "The file holds links only: what it left out counts in no sum, and nothing in it was verified on a model."
    )
    if any(node.influence is not None for node in file.nodes):
        notes.append("The influence of its nodes, by which its viewer prunes, is kept for its export only.")
    return Graph(
        model=scan,
        model_fingerprint="",
        prompt=metadata.prompt,
        tokens=tuple(
            GraphToken(token=ids.get(place, -1), text=text)
            for place, text in enumerate(metadata.prompt_tokens)
        ),
        target=GraphTarget(kind="token", position=main.ctx_idx, token=_index(main, None)),
        n_layers=max(layers, default=-1) + 1,
        precision="unknown",
        runs_in="unknown",
    )


def _node(node: FileNode, file: AttributionGraph, graph: Graph, notes: list[str]) -> Node:
    if node.microscope is not None:
        ours = replace(node.microscope, id=node.node_id)
        renamed = node.clerp is not None and node.clerp != label_of(ours, graph)
        return replace(ours, text=node.clerp) if renamed else ours
    kind = KINDS.get(node.feature_type)
    if kind is None:
        kind = "error" if "error" in node.feature_type else "block"
        notes.append(f'Nodes of the type "{node.feature_type[:60]}" are kept as {kind} nodes.')
    return Node(
        id=node.node_id,
        kind=kind,
        layer=graph.n_layers if kind == "target" else _layer(node),
        position=node.ctx_idx,
        index=_index(node, file.metadata.schema_version) if kind in ("feature", "target") else None,
        activation=node.activation,
        probability=node.token_prob if kind == "target" else None,
        text=_text(node),
    )


def _text(node: FileNode) -> str:
    """The label of a node; of an output, only what is put out."""
    label = node.clerp or ""
    output = OUTPUT.fullmatch(label)
    return output[1] if output and node.feature_type == "logit" else label


def _layer(node: FileNode) -> int:
    """The block of a node; −1 for the embedding."""
    if isinstance(node.layer, int):
        return node.layer
    if node.layer.startswith("E"):
        return -1
    if not (node.layer.isdecimal() and len(node.layer) < 10):
        raise malformed(f"the layer of node '{node.node_id[:60]}' is '{node.layer[:20]}'")
    return int(node.layer)


def _index(node: FileNode, schema: int | None) -> int | None:
    """Which latent a node is, or which token.

    ``feature`` is the latent itself, or holds the layer, too: as Cantor's pairing in schema 1 of Neuronpedia, or in
    front of the decimal digits, where circuit-tracer's ``node_id`` still tells the latent: ``layer_latent_token``.
    """
    feature = node.feature
    if feature is None or not 0 <= feature < LARGEST_INDEX:
        return None
    if node.feature_type == "logit":
        return feature
    if schema == 1:
        return _unpaired(feature, _layer(node))
    parts = node.node_id.split("_")
    if (
        len(parts) == 3
        and parts[0] == str(node.layer)
        and parts[2] == str(node.ctx_idx)
        and parts[1].isdecimal()
    ):
        found = int(parts[1])
        return found if str(feature).endswith(parts[1]) else feature
    return feature


def _unpaired(pair: int, layer: int) -> int | None:
    """The index in Cantor's pairing of layer and index: (l + i)(l + i + 1)/2 + i; None where the layer differs."""
    low, high = 0, LARGEST_INDEX
    while low < high:  # the largest sum whose triangle fits
        middle = (low + high + 1) // 2
        if middle * (middle + 1) // 2 <= pair:
            low = middle
        else:
            high = middle - 1
    index = pair - low * (low + 1) // 2
    return index if low - index == layer else None


def _token_id(node: FileNode) -> int:
    """A token of the vocabulary from ``E_token_place``; −1 where the id says nothing."""
    parts = node.node_id.split("_")
    known = len(parts) == 3 and parts[0] == "E" and parts[1].isdecimal() and len(parts[1]) < 10
    return int(parts[1]) if known else -1


def _edge(link: Link) -> Edge:
    if link.microscope is None:
        return Edge(parent=link.source, child=link.target, attribution=link.weight, hop=0)
    return replace(link.microscope, parent=link.source, child=link.target, attribution=link.weight)


def _with_hops(nodes: list[Node], edges: list[Edge], file: AttributionGraph) -> tuple[list[Node], list[Edge]]:
    """Hops of what came without: the fewest edges to a target."""
    parents: dict[str, list[str]] = {}
    for edge in edges:
        parents.setdefault(edge.child, []).append(edge.parent)
    hops = {node.id: 0 for node in nodes if node.kind == "target"}
    queue = list(hops)
    for name in queue:
        for parent in parents.get(name, ()):
            if parent not in hops:
                hops[parent] = hops[name] + 1
                queue.append(parent)
    own_nodes = [node.microscope is not None for node in file.nodes]
    own_edges = [link.microscope is not None for link in file.links]
    return (
        [n if own else replace(n, hop=hops.get(n.id, 1)) for n, own in zip(nodes, own_nodes, strict=True)],
        [
            e if own else replace(e, hop=hops.get(e.child, 0) + 1)
            for e, own in zip(edges, own_edges, strict=True)
        ],
    )


def _accounts(edges: Iterable[Edge], kinds: Mapping[str, NodeKind]) -> Iterable[Account]:
    """Sums over the links of a file, which holds no others; embeddings count with the features."""
    into: dict[str, list[Edge]] = {}
    for edge in edges:
        into.setdefault(edge.child, []).append(edge)
    for name, found in into.items():
        sums: dict[str, float] = defaultdict(float)
        sizes: dict[str, float] = defaultdict(float)
        for edge in found:
            kind = kinds.get(edge.parent)
            group = kind if kind in ("error", "bias") else "feature"
            sums[group] += edge.attribution
            sizes[group] += abs(edge.attribution)
        whole = sum(sums.values())
        yield Account(
            node=name,
            value=whole,
            constant=0.0,
            features=sums["feature"],
            errors=sums["error"],
            biases=sums["bias"],
            modules=0.0,
            shown=whole,
            absolute=sum(sizes.values()),
            absolute_errors=sizes["error"],
        )


def _view(arranged: QParams, known: Mapping[str, object], notes: list[str]) -> dict[str, Any]:
    """Pins and supernodes as pins and groups of our page."""
    pins = list(dict.fromkeys(arranged.pinnedIds or []))
    groups: list[dict[str, Any]] = []
    names: Counter[str] = Counter()
    gone = sum(pin not in known for pin in pins)
    for supernode in arranged.supernodes or []:
        if not supernode:
            continue
        label, *members = supernode
        name = label.strip()[:70] or "group"
        names[name] += 1
        kept = [member for member in dict.fromkeys(members) if member in known]
        gone += len(set(members)) - len(kept)
        if kept:
            name = name if names[name] == 1 else f"{name} ({names[name]})"
            groups.append({"name": name, "nodes": kept[:MAX_PINS], "closed": True})
    pins = [pin for pin in pins if pin in known]
    if gone:
        notes.append(
            f"{gone} pins or members of supernodes are of nodes that the file does not have; they are left out."
        )
    if len(pins) > MAX_PINS or len(groups) > MAX_GROUPS:
        notes.append(
            f"The first {MAX_PINS} of {len(pins)} pins and {MAX_GROUPS} of {len(groups)} supernodes are kept."
        )
    if arranged.sg_pos or arranged.clerps:
        notes.append(
            "Where its subgraph's nodes stood, and labels kept beside the nodes, have no place here."
        )
    view: dict[str, Any] = {}
    if pins:
        view["pins"] = pins[:MAX_PINS]
    if groups:
        view["groups"] = groups[:MAX_GROUPS]
    return view
