"""Whether a graph holds together: sizes, ids, places, numbers, parts, verdicts, and no cycle. Linear in its size."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from microscope.errors import MicroscopeError
from microscope.graphs.document import Edge, Graph, GraphSae, Node

MAX_NODES = 50_000
MAX_EDGES = 200_000
MAX_PARTS = 1_000_000
"""Parts of all edges together, and components."""
MAX_TOKENS = 100_000
MAX_BLOCKS = 10_000

PARTS_TOLERANCE = 1e-5
"""How far the sum of parts may be from their edge: of its size, or of the sum of the parts' sizes if larger."""
ROUNDING = 1e-6
"""What float32 may lose in an edge, of the sizes of all attributions to its child."""
PARTS_FLOOR = 1e-9
"""The same in absolute terms, where a graph tells no sizes."""


def check(graph: Graph) -> None:
    """Raise :class:`MicroscopeError` where a graph does not hold together.

    Codes: ``graph_too_large``, ``graph_duplicate``, ``graph_node_missing``, ``graph_target_missing``,
    ``graph_sae_missing``, ``graph_block_missing``, ``graph_position``, ``graph_number``, ``graph_parts``,
    ``graph_verdict`` and ``graph_cycle``.
    """
    _sizes(graph)
    _names(graph)
    _places(graph)
    _numbers(graph)
    sizes = {(account.node, account.side): account.absolute for account in graph.accounts}
    for edge in graph.edges:
        _edge(edge, sizes.get((edge.child, edge.side), 0.0))
    target_first(graph)


def target_first(graph: Graph) -> list[str]:
    """The ids of all nodes, every child before its parents; ties in the order of the graph.

    Raises ``graph_node_missing`` and ``graph_cycle``.
    """
    pending = {node.id: 0 for node in graph.nodes}
    parents: dict[str, list[str]] = {name: [] for name in pending}
    for edge in graph.edges:
        _known(edge, parents)
        parents[edge.child].append(edge.parent)
        pending[edge.parent] += 1
    order = [name for name, children in pending.items() if not children]
    for name in order:
        for parent in parents[name]:
            pending[parent] -= 1
            if not pending[parent]:
                order.append(parent)
    if len(order) < len(pending):
        stuck = next(name for name, children in pending.items() if children)
        raise MicroscopeError(
            "graph_cycle",
            f"The graph has a cycle: {len(pending) - len(order)} nodes, {_short(stuck)} among them, "
            "lie on a cycle or above one.",
            "An edge leads from a cause to its effect, and no effect causes itself: correct the edges.",
        )
    return order


def _sizes(graph: Graph) -> None:
    parts = sum(len(edge.parts) for edge in graph.edges)
    for what, found, most in (
        ("nodes", len(graph.nodes), MAX_NODES),
        ("edges", len(graph.edges), MAX_EDGES),
        ("parts of edges", parts, MAX_PARTS),
        ("components", len(graph.components), MAX_PARTS),
        ("tokens", len(graph.tokens), MAX_TOKENS),
        ("blocks", graph.n_layers, MAX_BLOCKS),
    ):
        if found > most:
            raise too_large(found, what, most)


def too_large(found: int, what: str, most: int) -> MicroscopeError:
    """The error for a graph with more of something than may be kept."""
    return MicroscopeError(
        "graph_too_large",
        f"The graph has {found:,} {what}; at most {most:,} can be kept.",
        "Keep fewer parents and edges per node.",
    )


def duplicate(what: str, name: str) -> MicroscopeError:
    """The error for something that may occur once and occurs again."""
    return MicroscopeError("graph_duplicate", f"{what} {_short(name)} occurs twice.", "Each may occur once.")


def _names(graph: Graph) -> None:
    _once("Node", ((node.id,) for node in graph.nodes))
    _once("The edge", (edge.key for edge in graph.edges))
    _once("The account of", ((account.node, account.side) for account in graph.accounts))
    _once("SAE", ((sae.fingerprint,) for sae in graph.saes))
    known = {node.id: node for node in graph.nodes}
    for edge in graph.edges:
        _known(edge, known)
    for account in graph.accounts:
        if account.node not in known:
            raise _node_missing(f"The account of {_short(account.node)}", account.node)
    if not any(node.kind == "target" for node in graph.nodes):
        raise MicroscopeError(
            "graph_target_missing", "No node of the graph is its target.", "Add the target's node."
        )


def _once(what: str, names: Iterable[tuple[str, ...]]) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise duplicate(what, " → ".join(filter(None, name)))


def _known(edge: Edge, known: dict[str, Node] | dict[str, list[str]]) -> None:
    for name in (edge.parent, edge.child):
        if name not in known:
            raise _node_missing(f"The edge {_short(edge.parent)} → {_short(edge.child)}", name)


def _node_missing(where: str, name: str) -> MicroscopeError:
    return MicroscopeError(
        "graph_node_missing",
        f"{where} names the node {_short(name)}, which the graph does not have.",
        "Add the node, or leave out what names it.",
    )


def _places(graph: Graph) -> None:
    saes = {sae.fingerprint: sae for sae in graph.saes}
    tokens = len(graph.tokens)
    for node in graph.nodes:
        where = f"node {_short(node.id)}"
        _block(where, node.layer, -1, graph.n_layers)
        _position(where, node.position, tokens, wanted=node.kind in ("feature", "error"))
        if node.sae:
            _sae(node, saes)
    # −1 stands for the last token
    _position("the target", max(graph.target.position, 0) if graph.target.position >= -1 else -2, tokens)
    for component in graph.components:
        where = f"a component ({component.kind})"
        _block(where, component.layer, -1, graph.n_layers - 1)
        _position(where, component.position, tokens)
    for edge in graph.edges:
        for part in edge.parts:
            if part.kind in ("direct", "other"):
                continue
            where = f"a part ({part.kind}) of the edge {_short(edge.parent)} → {_short(edge.child)}"
            _block(where, -1 if part.layer is None else part.layer, 0, graph.n_layers - 1)


def _block(where: str, layer: int | None, lowest: int, highest: int) -> None:
    if layer is not None and not lowest <= layer <= highest:
        raise MicroscopeError(
            "graph_block_missing",
            f"The layer of {where} is {layer}; it may be {lowest} to {highest} in this model.",
            "Choose the model that the graph was computed on, or correct the layer.",
        )


def _position(where: str, position: int | None, tokens: int, wanted: bool = False) -> None:
    if position is None:
        if wanted:
            raise MicroscopeError(
                "graph_position", f"A position is missing for {where}.", "Say at which token it is."
            )
    elif not 0 <= position < tokens:
        raise MicroscopeError(
            "graph_position",
            f"The position of {where} is {position}; the prompt has {tokens} tokens, counted from 0.",
            "Correct the position.",
        )


def _sae(node: Node, saes: dict[str, GraphSae]) -> None:
    sae = saes.get(node.sae)
    if sae is None or (node.index is not None and not 0 <= node.index < sae.n_latents):
        missing = "which the graph does not list" if sae is None else f"which has {sae.n_latents} latents"
        raise MicroscopeError(
            "graph_sae_missing",
            f"Node {_short(node.id)} is latent {node.index} of the SAE {_short(node.sae)}, {missing}.",
            "List the SAE with its number of latents, or correct the node.",
        )


def _numbers(graph: Graph) -> None:
    summary = graph.summary
    _finite("The target's vector", graph.target.vector)
    for node in graph.nodes:
        _finite(f"Node {_short(node.id)}", (node.activation, node.value, node.probability))
        if node.probability is not None and not 0 <= node.probability <= 1:
            raise MicroscopeError(
                "graph_number",
                f"The probability of node {_short(node.id)} is {node.probability:g}.",
                "A probability lies between 0 and 1.",
            )
    for account in graph.accounts:
        sums = (account.features, account.errors, account.biases, account.modules, account.shown)
        sizes = (account.absolute, account.absolute_errors)
        _finite(f"The account of {_short(account.node)}", (account.value, account.constant, *sums, *sizes))
    for component in graph.components:
        _finite(f"A component ({component.kind})", (component.attribution,))
    shares = (summary.spearman, summary.sign_agreement, summary.error_share)
    _finite("The summary", (*shares, summary.first_seconds, summary.seconds, graph.completeness))


def _finite(where: str, numbers: Sequence[float | None]) -> None:
    for number in numbers:
        if number is not None and not math.isfinite(number):
            raise MicroscopeError(
                "graph_number", f"{where} has {number} for a number.", "Compute the graph in float32."
            )


def _edge(edge: Edge, absolute: float) -> None:
    where = f"The edge {_short(edge.parent)} → {_short(edge.child)}"
    _finite(
        where, (edge.attribution, edge.measured, edge.control, edge.mediated, *edge.strengths, *edge.effects)
    )
    if len(edge.strengths) != len(edge.effects):
        raise MicroscopeError(
            "graph_verdict",
            f"{where} has {len(edge.strengths)} strengths and {len(edge.effects)} effects.",
            "One effect was measured per strength: give as many.",
        )
    if edge.verified != (None if edge.verdict is None else edge.verdict != "not shown"):
        raise MicroscopeError(
            "graph_verdict",
            f'{where} says verified {edge.verified} with the verdict "{edge.verdict}".',
            "An edge is verified when its verdict is causal or weak.",
        )
    if edge.parts:
        sizes = [part.attribution for part in edge.parts]
        _finite(where, sizes)
        total = math.fsum(sizes)
        scale = max(abs(edge.attribution), math.fsum(map(abs, sizes)))
        if abs(total - edge.attribution) > PARTS_TOLERANCE * scale + ROUNDING * absolute + PARTS_FLOOR:
            raise MicroscopeError(
                "graph_parts",
                f"{where} is {edge.attribution:.7g}, and its parts sum to {total:.7g}.",
                "The parts of an edge sum to it: list all of them, or none.",
            )


def _short(name: str) -> str:
    """A name in quotes, cut so that it fits a sentence."""
    return repr(name if len(name) <= 60 else name[:57] + "…")
