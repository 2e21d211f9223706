"""``microscope provenance``: where a feature, a token or an attention score comes from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from microscope.cli.options import ManyCommand, job_options
from microscope.cli.running import run_command, shared_options
from microscope.graphs import Attended, Component, Contributor, Graph, Node, Part
from microscope.params import ProvenanceParams

if TYPE_CHECKING:
    from microscope.progress import Progress

# Lines of a table on a terminal; everything is in the file.
_MOST_LINES = 25
_VERDICTS = {"causal": "[blue]causal", "weak": "weak", "not shown": "[bold]not shown"}


@click.command(cls=ManyCommand)
@shared_options
@job_options(ProvenanceParams)
def provenance(**values: Any) -> None:
    """Explain where a feature, a token or an attention score comes from, and measure every edge.

    microscope provenance --model Qwen/Qwen3-0.6B --sae-path sae/ --prompt "the state of" --token " union"

    With --feature 42 a feature of the topmost SAE is explained, with --against the difference of two tokens, and
    with --attention 5.3:11:4 the score of head 3 of block 5 from position 11 to position 4.
    """

    def work(params: ProvenanceParams, progress: Progress) -> dict[str, Any]:
        from microscope.provenance.run import as_json, explain_target

        return as_json(explain_target(params, progress))

    run_command(ProvenanceParams, values, work, _show)


def _show(_options: dict[str, Any], result: dict[str, Any], console: Console) -> None:
    import msgspec

    graph = msgspec.convert(result, type=Graph)
    _show_target(graph, console)
    _show_components(graph.components, graph, console)
    show_edges(graph, console)
    if "attended" in result:
        _show_attended(msgspec.convert(result["attended"], type=Attended), graph, console)
    for note in graph.notes:
        console.print(note, style="yellow", markup=False, highlight=False)


def _show_target(graph: Graph, console: Console) -> None:
    summary, target = graph.summary, graph.nodes[0]
    facts = Table(show_header=False, box=None)
    facts.add_row("[bold]target", _plain(f"{_target_words(graph)}, {_number(target.value)}"))
    facts.add_row("[bold]completeness", _number(graph.completeness))
    facts.add_row("[bold]depth", f"{summary.depth} hops")
    if summary.measured:
        facts.add_row("[bold]verified", f"{summary.verified} of {summary.measured} measured edges")
        facts.add_row("[bold]spearman", _number(summary.spearman))
        facts.add_row("[bold]same sign", _number(summary.sign_agreement))
    if summary.error_share is not None:
        facts.add_row("[bold]error nodes", f"{summary.error_share:.0%} of all attributions")
    facts.add_row("[bold]seconds", _number(summary.seconds))
    console.print(facts, highlight=False)


def _show_components(components: Iterable[Component], graph: Graph, console: Console) -> None:
    table = Table("Component", "Reads", "Attribution")
    ranked = sorted(components, key=lambda one: -abs(one.attribution))
    for one in ranked[:_MOST_LINES]:
        reads = "" if one.position is None else _token(one.position, graph)
        side = f"{one.side}: " if one.side else ""
        table.add_row(side + _module_words(one), _plain(reads), _number(one.attribution))
    console.print(table)
    if len(ranked) > _MOST_LINES:
        console.print(f"… and {len(ranked) - _MOST_LINES} smaller ones")


def show_edges(graph: Graph, console: Console) -> None:
    """The strongest edges of each hop, with what the running model said to them."""
    if not graph.edges:
        return
    table = Table("From", "To", "Attribution", "Measured", "Verdict", "Through")
    nodes = {node.id: node for node in graph.nodes}
    ranked = sorted(graph.edges, key=lambda edge: (edge.hop, -abs(edge.attribution)))
    for edge in ranked[:_MOST_LINES]:
        ends = (node_words(nodes[name], graph) for name in (edge.parent, edge.child))
        verdict = "" if edge.verdict is None else _VERDICTS[edge.verdict]
        through = max(edge.parts, key=lambda part: abs(part.attribution), default=None)
        table.add_row(
            *map(_plain, ends),
            _number(edge.attribution),
            _number(edge.measured),
            f"{verdict} (carried)" if edge.carry and verdict else "carried" if edge.carry else verdict,
            "" if through is None else _module_words(through),
        )
    console.print(table)
    if len(ranked) > _MOST_LINES:
        console.print(f"… and {len(ranked) - _MOST_LINES} more; --out keeps them all")


def _show_attended(found: Attended, graph: Graph, console: Console) -> None:
    """What is at the two ends of a score, and the pairs that make it."""
    console.print(
        _plain(
            f"head {found.layer}.{found.head} from {_token(found.query, graph)} to {_token(found.key, graph)}: "
            f"score {_number(found.score)}, weight {found.weight:.1%}"
        ),
        highlight=False,
    )
    ends = {"At the query": found.query_contributors, "At the key": found.key_contributors}
    for title, listed in ends.items():
        table = Table(title, "Attribution")
        for one in sorted(listed, key=lambda one: -abs(one.attribution))[:_MOST_LINES]:
            table.add_row(_contributor_words(one, graph), _number(one.attribution))
        console.print(table)
    pairs = Table("Query", "Key", "Attribution")
    for pair in sorted(found.pairs, key=lambda pair: -abs(pair.attribution))[:_MOST_LINES]:
        query, key = found.query_contributors[pair.query], found.key_contributors[pair.key]
        words = (_contributor_words(one, graph) for one in (query, key))
        pairs.add_row(*words, _number(pair.attribution))
    console.print(pairs)


def _contributor_words(one: Contributor, graph: Graph) -> str:
    if one.kind != "feature":
        return _module_words(one)
    site = next((sae.site for sae in graph.saes if sae.fingerprint == one.sae), "feature")
    return f"{site}:{one.index}"


def node_words(node: Node, graph: Graph) -> str:
    """A node in a few words: an SAE's latent as its site and number."""
    at = "" if node.position is None else f" at {_token(node.position, graph)}"
    if node.kind == "target":
        return "target"
    if node.kind == "feature":
        return f"{node.site}:{node.index}{at}"
    return f"{node.site} {node.kind}{at}".strip()


def _target_words(graph: Graph) -> str:
    target = graph.target
    at = f"at {_token(target.position, graph)}"
    match target.kind:
        case "feature":
            return f"feature {target.index} of {graph.nodes[0].site} {at}"
        case "token":
            return f"logit of token {target.token} {at}"
        case "difference":
            return f"logit of token {target.token} less that of {target.against} {at}"
        case "attention":
            key = "" if target.key is None else _token(target.key, graph)
            return f"attention score of head {target.layer}.{target.head} {at} to {key}"
    return f"direction behind block {target.layer} {at}"


def _module_words(one: Component | Contributor | Part) -> str:
    if one.kind == "head":
        return f"head {one.layer}.{one.head}"
    return one.kind if one.layer is None else f"{one.kind} {one.layer}"


def _token(position: int, graph: Graph) -> str:
    return f"{position} {graph.tokens[position].text!r}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
