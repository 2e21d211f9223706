"""The file of a graph: read, checked, kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from apps.artifacts import services as artifacts
from apps.artifacts.models import Artifact
from apps.core.errors import NotVisible, Refused
from apps.core.ids import uuid7
from apps.graphs import models
from microscope.graphs import Graph, check, summarise, write_attribution_graph

DOCUMENT = "graph.json"
KIND = Artifact.Kind.GRAPH


def read_file(path: Path) -> Graph:
    """The document in a file that a job has left, or that came in a bundle.

    Raises:
        Refused: ``bad_graph``.
        MicroscopeError: what :func:`microscope.graphs.check` raises.
    """
    try:
        graph = msgspec.json.decode(path.read_bytes(), type=Graph)
    except OSError as error:
        raise Refused("bad_graph", f"The job left no {path.name}.") from error
    except msgspec.MsgspecError as error:
        raise Refused("bad_graph", f"{path.name} holds no graph: {error}.") from error
    check(graph)
    return graph


def stored_bytes(graph: models.Graph) -> bytes:
    """The document of a graph as it is kept.

    Raises:
        Refused: ``graph_not_ready``.
        NotVisible: its file is gone.
    """
    if graph.artifact is None:
        raise Refused("graph_not_ready", f"The graph is {graph.state}.", "Wait for its job.", status=409)
    try:
        return (graph.artifact.checkout() / DOCUMENT).read_bytes()
    except FileNotFoundError as error:
        raise NotVisible("The file of this graph is gone from the disk") from error


def columns_of(graph: Graph) -> dict[str, Any]:
    """What a list shows of a checked document, as columns of its row; counted anew, whatever its summary says."""
    found = summarise(graph)
    return {
        "prompt": graph.prompt.replace("\0", ""),  # PostgreSQL stores no NUL in text
        "target": msgspec.to_builtins(graph.target),
        "saes": [sae.fingerprint for sae in graph.saes],
        "depth": found.depth,
        "verified": found.verified,
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "completeness": graph.completeness,
        "spearman": found.spearman,
    }


class Draft:
    """A document on its way into the store: written and read through before the transaction, taken over inside it.

    Used as a context around that transaction: what was not taken over is removed.
    """

    def __init__(self, document: bytes) -> None:
        self._name = uuid7()
        self._folder = artifacts.target_of(KIND, self._name).with_name(f".draft-{self._name}")
        self._folder.mkdir(parents=True)
        (self._folder / DOCUMENT).write_bytes(document)
        self._files = artifacts.list_folder(self._folder)

    def __enter__(self) -> Draft:
        return self

    def keep(self, project_id: UUID) -> Artifact:
        """Take it over; call last inside the transaction."""
        return artifacts.commit_folder(
            project_id=project_id, kind=KIND, source=self._folder, name=self._name, files=self._files
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        artifacts.uncommit_folder(kind=KIND, name=self._name, source=self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)


def exported(graph: models.Graph, layout: str) -> bytes:
    """The file of a graph in one of the formats it is given out in, with what is arranged on its page if that has a place.

    Raises:
        Refused: ``graph_not_ready``.
        NotVisible: its file is gone.
    """
    document = stored_bytes(graph)
    if layout == "microscope":
        return document
    return write_attribution_graph(
        msgspec.json.decode(document, type=Graph), view=graph.view, name=graph.name
    )
