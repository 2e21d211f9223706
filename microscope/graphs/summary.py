"""What the verification of a graph found, in numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from microscope.graphs.contraction import depth
from microscope.graphs.document import Graph, Summary


def summarise(graph: Graph, first_seconds: float | None = None, seconds: float | None = None) -> Summary:
    """The summary of a graph as it stands; ``first_seconds`` and ``seconds`` are kept from before where None.

    Raises:
        MicroscopeError: ``graph_node_missing``, ``graph_cycle``.
    """
    pairs = [(edge.attribution, edge.measured) for edge in graph.edges if edge.measured is not None]
    predicted, measured = [a for a, _ in pairs], [b for _, b in pairs]
    agreeing = sum(_sign(a) == _sign(b) for a, b in pairs)
    return Summary(
        depth=depth(graph),
        spearman=spearman(predicted, measured),
        sign_agreement=agreeing / len(pairs) if pairs else None,
        measured=len(pairs),
        verified=sum(edge.verified is True for edge in graph.edges),
        error_share=error_share(graph),
        first_seconds=graph.summary.first_seconds if first_seconds is None else first_seconds,
        seconds=graph.summary.seconds if seconds is None else seconds,
    )


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation: Pearson's of the ranks, ties at the mean of theirs.

    None below three pairs, and where all of one side are equal, for then no rank order exists.
    """
    if len(first) < 3:
        return None
    a, b = _ranks(first), _ranks(second)
    middle = (len(a) + 1) / 2
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in a) * math.fsum((y - middle) ** 2 for y in b))
    if not spread:
        return None
    together = math.fsum((x - middle) * (y - middle) for x, y in zip(a, b, strict=True)) / spread
    return max(-1.0, min(1.0, together))


def error_share(graph: Graph) -> float | None:
    """Of the sizes of all attributions, shown or not, those of error nodes; summed over all accounts.

    None where no account tells, or none has any attribution. Accounts that do not tell are left out on both sides.
    """
    told = [(a.absolute_errors, a.absolute) for a in graph.accounts if a.absolute_errors is not None]
    absolute = math.fsum(total for _, total in told)
    return math.fsum(errors for errors, _ in told) / absolute if absolute else None


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for place in order[start : end + 1]:
            ranks[place] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)
