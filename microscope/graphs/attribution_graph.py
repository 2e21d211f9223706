"""The attribution-graph JSON that circuit-tracer's viewer and Neuronpedia read: its shape, and a graph written in it.

Where a field is read by those viewers, it holds what they expect. What has no field there (sites, verdicts, parts)
travels under ``microscope``, which they pass over, so that a file comes back as the graph it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from microscope.graphs.document import Edge, Foreign, Graph, Node

FEATURE_TYPES = {
    "target": "logit",
    "feature": "cross layer transcoder",
    "error": "mlp reconstruction error",
    "embedding": "embedding",
    "bias": "bias",
    "mlp": "mlp",
    "head": "attention head",
    "block": "block",
}
"""By kind of node. Viewers open a feature's card for ``cross layer transcoder`` only, whatever it was trained on."""


class Metadata(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What the whole file is about. ``microscope`` is the graph without nodes and edges."""

    slug: str
    scan: str | list[str]
    prompt_tokens: list[str]
    prompt: str
    transcoder_list: list[str] | None = None
    schema_version: int | None = None
    info: dict[str, Any] | None = None
    microscope: Graph | None = None


class QParams(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a person has arranged. A supernode is its name and the ids of its nodes."""

    pinnedIds: list[str] | None = None
    supernodes: list[list[str]] | None = None
    linkType: str | None = None
    clickedId: str | None = None
    sg_pos: str | None = None
    clerps: Any = None


class FileNode(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One node. ``layer`` is a number, or E for the embedding; ``clerp`` is the label."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str | None = None
    clerp: str | None = None
    token_prob: float | None = None
    is_target_logit: bool | None = None
    influence: float | None = None
    activation: float | None = None
    microscope: Node | None = None


class Link(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One edge: from what contributes to what it contributes to."""

    source: str
    target: str
    weight: float
    microscope: Edge | None = None


class AttributionGraph(msgspec.Struct, kw_only=True):
    """The whole file."""

    metadata: Metadata
    qParams: QParams
    nodes: list[FileNode]
    links: list[Link]


class _Group(msgspec.Struct):
    name: str
    nodes: list[str]


class _View(msgspec.Struct):
    pins: list[str] = []
    groups: list[_Group] = []


def write_attribution_graph(
    graph: Graph, view: Mapping[str, Any] | None = None, name: str = "graph"
) -> bytes:
    """A graph as attribution-graph JSON. One that was read from such a file gets back all that the file held.

    Args:
        view: what was arranged on its page: ``pins`` become ``pinnedIds``, ``groups`` become ``supernodes``. Ids
            that the graph does not have are left out, and so is a view of another shape.
        name: what viewers list it as.
    """
    try:
        arranged = msgspec.convert(view or {}, type=_View)
    except msgspec.ValidationError:
        arranged = _View()
    known = {node.id for node in graph.nodes}
    groups = [[group.name, *(name for name in group.nodes if name in known)] for group in arranged.groups]
    document = AttributionGraph(
        metadata=_metadata(graph, name),
        qParams=QParams(
            pinnedIds=[pin for pin in arranged.pins if pin in known],
            supernodes=[group for group in groups if len(group) > 1],
            linkType="both",
            clickedId="",
            sg_pos="",
        ),
        nodes=[_node(node, graph) for node in graph.nodes],
        links=[_link(edge, graph) for edge in graph.edges],
    )
    return msgspec.json.encode(document if graph.foreign is None else _with_foreign(document, graph.foreign))


def _metadata(graph: Graph, name: str) -> Metadata:
    return Metadata(
        slug=name,
        scan=graph.model,
        transcoder_list=[sae.name for sae in graph.saes],
        prompt_tokens=[token.text for token in graph.tokens],
        prompt=graph.prompt,
        info={
            "description": "Latents are of the SAEs and transcoders listed; nodes without a position stand at token "
            "0; where a target's probability is not known, token_prob is 1.",
            "generator": {"name": "InterpretabilityWorkbench"},
        },
        microscope=msgspec.structs.replace(graph, nodes=(), edges=()) if graph.foreign is None else None,
    )


def _link(edge: Edge, graph: Graph) -> Link:
    extra = edge if graph.foreign is None else None
    return Link(source=edge.parent, target=edge.child, weight=edge.attribution, microscope=extra)


def _with_foreign(document: AttributionGraph, foreign: Foreign) -> dict[str, Any]:
    """The file with what it held before it was read here, and nothing that it did not hold."""
    written: dict[str, Any] = msgspec.to_builtins(document)
    metadata = written["metadata"]
    taken = {name: metadata[name] for name in ("prompt", "prompt_tokens")}
    written["metadata"] = {"slug": metadata["slug"], "scan": metadata["scan"], **foreign.metadata, **taken}
    written["qParams"] |= foreign.params
    for place, node in enumerate(written["nodes"]):
        kept = foreign.nodes.get(node["node_id"])
        if kept is not None:
            written["nodes"][place] = {**kept, "node_id": node["node_id"], "ctx_idx": node["ctx_idx"]}
    return foreign.other | written


def _node(node: Node, graph: Graph) -> FileNode:
    target = node.kind == "target"
    feature = {"embedding": node.position, "target": graph.target.token}.get(node.kind)
    if node.index is not None:
        feature = node.index
    return FileNode(
        node_id=node.id,
        jsNodeId=node.id,
        feature=-1 if feature is None else feature,
        layer="E" if node.layer < 0 else str(node.layer),
        ctx_idx=place_of(node, graph),
        feature_type=FEATURE_TYPES[node.kind],
        clerp=label_of(node, graph),
        token_prob=(1.0 if node.probability is None else node.probability) if target else 0.0,
        is_target_logit=node.id == main_target(graph),
        activation=node.activation,
        microscope=node if graph.foreign is None else None,
    )


def main_target(graph: Graph) -> str | None:
    """The id of the first node that is a target."""
    return next((node.id for node in graph.nodes if node.kind == "target"), None)


def place_of(node: Node, graph: Graph) -> int:
    """The token at which a viewer draws a node."""
    if node.position is not None:
        return node.position
    return graph.target.position % max(len(graph.tokens), 1) if node.kind == "target" else 0


def label_of(node: Node, graph: Graph) -> str:
    """The label of a node. Viewers read a target's probability out of it, and fail where they find none."""
    if node.kind == "target":
        probability = "?" if node.probability is None else f"{node.probability:.3f}"
        return f'Output "{node.text or _target_text(graph)}" (p={probability})'
    return node.text


def _target_text(graph: Graph) -> str:
    target = graph.target
    match target.kind:
        case "feature":
            return f"feature {target.index}"
        case "token":
            return f"token {target.token}"
        case "difference":
            return f"token {target.token} less {target.against}"
        case "attention":
            return f"attention of head {target.head} in block {target.layer}"
        case "direction":
            return f"direction behind block {target.layer}"
