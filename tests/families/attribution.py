"""Attributions of any family: what they have to sum to, and where they do not."""

from __future__ import annotations

from microscope.errors import MicroscopeError
from microscope.graphs import Graph, GraphTarget, check
from microscope.models import LoadedModel
from microscope.provenance import Limits, explain

# Hop 0 is exact; accounts are where everything in a block is held constant.
EXACT, HELD = 1e-4, 1e-3


def attribution_of(loaded: LoadedModel, text: str) -> str:
    """Explain a token by the embeddings, through all blocks: ``held``, ``not held`` or the code of a refusal.

    The exact components sum to the logit, an account that says nothing of nonlinear parts sums to it, and parts to
    their edges.
    """
    ids, target = loaded.encode(text), GraphTarget(kind="token", token=5)
    try:
        graph = next(
            explain(loaded, ids, target, {}, limits=Limits(1, 1, len(ids)), mlp="gates", verify=False)
        )
    except MicroscopeError as error:
        return error.code
    assert isinstance(graph, Graph)
    check(graph)  # parts sum to edges, too
    assert graph.completeness is not None
    size = sum(abs(component.attribution) for component in graph.components)
    (account,) = graph.accounts
    value = account.value - account.constant
    assert abs(sum(c.attribution for c in graph.components) - value) <= EXACT * size
    assert len(graph.edges) >= 1
    assert all(edge.parts for edge in graph.edges)
    held = not any("nonlinear parts" in note for note in graph.notes)
    off = abs(account.missing) / account.absolute
    assert (off <= HELD) is held
    return "held" if held else "not held"
