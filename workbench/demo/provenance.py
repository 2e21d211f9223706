"""The last step of the demo: where a feature that its patches use comes from, as a saved graph."""

from __future__ import annotations

from typing import Any

from workbench.demo.patching import WORD_PROMPT, wait_until_ready
from workbench.demo.portal import Portal


async def strongest_position(portal: Portal, model: str, sae: dict[str, Any], index: int) -> int:
    """The token of the prompt at which a feature is most active."""
    async with portal.socket(f"/ws/live/{model}/") as socket:
        await wait_until_ready(socket)
        await socket.send("open", prompt=WORD_PROMPT)
        await socket.expect("opened")
        await socket.send("read_features", sae=sae["fingerprint"], indices=[index])
        [found] = (await socket.expect("features"))["features"]
    values: list[float] = found["values"]
    return max(range(len(values)), key=values.__getitem__)


def graph_body(
    name: str,
    model: dict[str, Any],
    sae: dict[str, Any],
    below: list[dict[str, Any]],
    index: int,
    position: int,
) -> dict[str, Any]:
    """What is asked of the portal: a feature of one SAE, explained by those of the SAEs below it."""
    return {
        "model": model["id"],
        "name": name,
        "prompt": WORD_PROMPT,
        "target": {"kind": "feature", "sae": sae["id"], "index": index, "position": position},
        "saes": [one["id"] for one in (*below, sae)],
        "hops": len(below),
    }


def words(graph: dict[str, Any], document: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows of the demo's table."""
    target, summary = document["target"], document["summary"]
    token = document["tokens"][target["position"]]["text"]
    kept = sum(edge["verified"] is True for edge in document["edges"])
    return [
        (
            "Provenance",
            f"feature {target['index']} at {token!r}: {_counted(graph['depth'], 'hop')} on the longest path of verified edges",
        ),
        (
            "Edges",
            f"{kept} of {summary['measured']} measured are causal or weak; predicted and measured effects: "
            f"Spearman {_figure(summary['spearman'])}, same sign {_share(summary['sign_agreement'])}",
        ),
        (
            "Exact components",
            f"sum to {document['completeness']:.6f} of the feature; first picture {summary['first_seconds']:.1f} s, "
            f"all edges measured {summary['seconds']:.1f} s",
        ),
    ]


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
