"""Graphs in files: our own JSON, and attribution graphs of other programs, checked before they are believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from microscope.errors import MicroscopeError
from microscope.graphs.attribution_graph import AttributionGraph
from microscope.graphs.checks import MAX_EDGES, MAX_NODES, check, too_large
from microscope.graphs.document import Foreign, Graph
from microscope.graphs.foreign import GraphFile, malformed, taken_over

MAX_BYTES = 64 * 1024 * 1024

_File = TypeVar("_File")


class _Layout(msgspec.Struct):
    """Enough of a file to tell which kind it is and how much it holds, before anything of it is built."""

    format: str = ""
    nodes: list[msgspec.Raw] = []
    edges: list[msgspec.Raw] = []
    links: list[msgspec.Raw] | None = None


def read_graph_file(content: bytes | Mapping[str, Any]) -> GraphFile:
    """The checked graph of a file, or of JSON that was read already.

    Raises:
        MicroscopeError: ``graph_file_too_large`` above 64 MiB, ``graph_file_malformed``, or what
            :func:`microscope.graphs.check` raises.
    """
    if not isinstance(content, bytes):
        try:
            content = msgspec.json.encode(content)
        except (TypeError, ValueError, RecursionError) as error:
            raise malformed(str(error)) from error
    if len(content) > MAX_BYTES:
        raise MicroscopeError(
            "graph_file_too_large",
            f"The file has {len(content):,} bytes; graphs of up to {MAX_BYTES:,} can be read.",
            "Prune the graph before it is saved.",
        )
    layout = _decode(content, _Layout)
    edges = layout.edges if layout.links is None else layout.links
    for found, what, most in ((len(layout.nodes), "nodes", MAX_NODES), (len(edges), "edges", MAX_EDGES)):
        if found > most:
            raise too_large(found, what, most)
    if layout.links is not None:
        return taken_over(_decode(content, AttributionGraph), _leftovers(content))
    if layout.format != "microscope-graph":
        raise malformed('it has neither "links" nor the format "microscope-graph"')
    graph = _decode(content, Graph)
    check(graph)
    return GraphFile(graph=graph, view={})


def _decode(content: bytes, kind: type[_File]) -> _File:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise malformed(str(error)) from error


def _leftovers(content: bytes) -> Foreign:
    """What a file holds that neither a graph nor a view has a field for."""
    parts = _decode(content, dict[str, msgspec.Raw])
    rest: dict[str, Any] = {
        name: _decode(bytes(raw), object) for name, raw in parts.items() if name != "links"
    }
    metadata, params, nodes = rest.pop("metadata"), rest.pop("qParams"), rest.pop("nodes")
    return Foreign(
        metadata=_without(metadata, "prompt", "prompt_tokens"),
        params=_without(params, "pinnedIds", "supernodes"),
        nodes={node["node_id"]: _without(node, "node_id", "ctx_idx") for node in nodes},
        other=rest,
    )


def _without(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name not in names}
