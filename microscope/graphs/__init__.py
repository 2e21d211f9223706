"""Provenance graphs as documents: what they hold, whether they hold together, and what follows from their numbers.

The portal imports this, too: no torch.
"""

from microscope.graphs.attribution_graph import write_attribution_graph
from microscope.graphs.checks import MAX_EDGES, MAX_NODES, check, target_first
from microscope.graphs.contraction import Fold, Folded, contract, depth, is_hop
from microscope.graphs.document import (
    Account,
    Attended,
    AttendedPair,
    Component,
    Contributor,
    Edge,
    Foreign,
    Graph,
    GraphSae,
    GraphTarget,
    GraphToken,
    GraphUpdate,
    Node,
    Part,
    PartKind,
    Side,
    Summary,
    updated,
)
from microscope.graphs.files import MAX_BYTES, read_graph_file
from microscope.graphs.foreign import GraphFile
from microscope.graphs.pinned import pinned_completeness
from microscope.graphs.summary import error_share, spearman, summarise

__all__ = [
    "MAX_BYTES",
    "MAX_EDGES",
    "MAX_NODES",
    "Account",
    "Attended",
    "AttendedPair",
    "Component",
    "Contributor",
    "Edge",
    "Fold",
    "Folded",
    "Foreign",
    "Graph",
    "GraphFile",
    "GraphSae",
    "GraphTarget",
    "GraphToken",
    "GraphUpdate",
    "Node",
    "Part",
    "PartKind",
    "Side",
    "Summary",
    "check",
    "contract",
    "depth",
    "error_share",
    "is_hop",
    "pinned_completeness",
    "read_graph_file",
    "spearman",
    "summarise",
    "target_first",
    "updated",
    "write_attribution_graph",
]
