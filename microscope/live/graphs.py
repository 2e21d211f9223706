"""Graphs in live sessions: one piece at a time, so that others' turns come in between."""

from __future__ import annotations

from collections.abc import Sequence

from microscope.errors import MicroscopeError
from microscope.graphs import Attended, Graph, GraphTarget, GraphUpdate
from microscope.live.resident import ResidentModel
from microscope.provenance import Limits, attended, explain
from microscope.provenance.needs import bytes_needed, require_memory


def start_graph(
    resident: ResidentModel,
    session: str,
    target: GraphTarget,
    saes: Sequence[str],
    *,
    limits: Limits | None = None,
    verify: bool = True,
) -> None:
    """Begin to explain a target on a session's prompt, unpatched; ends a graph that is being made there.

    Nothing is computed yet: :func:`next_piece` does that.

    Args:
        session: whose prompt.
        target: what to explain.
        saes: fingerprints of attached SAEs whose latents are nodes.
        limits: how much to make.
        verify: whether to measure edges on the running model.

    Raises:
        MicroscopeError: ``no_session``, ``sae_not_attached`` or ``graph_needs_memory``.
    """
    state = resident.sessions.get(session)
    stop_graph(resident, session)
    # Held here: an SAE that is let go of meanwhile stays with the graph that names it.
    chosen = {name: resident.attached.sae(name) for name in saes}
    if target.kind == "feature":
        chosen.setdefault(target.sae, resident.attached.sae(target.sae))
    tokens = state.tokens.tolist()
    need = bytes_needed(resident.loaded, len(tokens), target, chosen, limits)
    others = sum(other.graph_bytes for other in resident.sessions.by_name.values())
    require_memory(need, len(tokens), resident.loaded.device, promised=others)
    state.graph_bytes = need
    state.graph = explain(
        resident.loaded,
        tokens,
        target,
        chosen,
        prompt=state.prompt,
        limits=limits,
        verify=verify,
        runner=resident.runner,
        baseline=state.baseline,
    )


def next_piece(resident: ResidentModel, session: str) -> Graph | GraphUpdate | None:
    """The next piece of a session's graph: the first picture, then updates; None when it is done.

    Raises:
        MicroscopeError: ``no_session``, ``no_graph``, or what :func:`explain` raises, which ends it.
    """
    state = resident.sessions.get(session)
    if state.graph is None:
        raise MicroscopeError("no_graph", "No graph is being made.", "Ask for one first.")
    try:
        piece = next(state.graph, None)
    except BaseException:
        stop_graph(resident, session)
        raise
    if piece is None:
        stop_graph(resident, session)
    return piece


def stop_graph(resident: ResidentModel, session: str) -> None:
    """End a graph; it is fine if there is none."""
    state = resident.sessions.by_name.get(session)
    if state is not None:
        state.graph, state.graph_bytes = None, 0


def why_attended(
    resident: ResidentModel,
    session: str,
    layer: int,
    head: int,
    query: int,
    key: int,
    saes: Sequence[str] = (),
    top: int = 20,
) -> Attended:
    """Why a head attends from one position of a session's prompt to another, unpatched; see :func:`attended`.

    Args:
        saes: fingerprints of attached SAEs whose features may be contributors.

    Raises:
        MicroscopeError: ``no_session``, ``sae_not_attached``, ``graph_needs_memory``, or what :func:`attended` raises.
    """
    tokens = resident.sessions.get(session).tokens.tolist()
    chosen = {name: resident.attached.sae(name) for name in saes}
    target = GraphTarget(kind="attention", layer=layer, head=head, position=query, key=key)
    need = bytes_needed(resident.loaded, len(tokens), target, {}, Limits(hops=1, parents=1))
    promised = sum(other.graph_bytes for other in resident.sessions.by_name.values())
    require_memory(need, len(tokens), resident.loaded.device, promised=promised)
    return attended(resident.loaded, tokens, layer, head, query, key, chosen, top)
