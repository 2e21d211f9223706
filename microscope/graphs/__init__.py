"""Provenance graphs as documents: what they hold, whether they hold together, and what follows from their numbers.

The portal imports this, too: no torch.
"""

from microscope.graphs.document import (
    Account,
    Attended,
    AttendedPair,
    Component,
    Contributor,
    Edge,
    Graph,
    GraphSae,
    GraphTarget,
    GraphToken,
    GraphUpdate,
    Node,
    Part,
    Summary,
    updated,
)

__all__ = [
    "Account",
    "Attended",
    "AttendedPair",
    "Component",
    "Contributor",
    "Edge",
    "Graph",
    "GraphSae",
    "GraphTarget",
    "GraphToken",
    "GraphUpdate",
    "Node",
    "Part",
    "Summary",
    "updated",
]
