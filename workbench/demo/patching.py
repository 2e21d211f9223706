"""The live half of the demo: find a feature that fires on a prompt, patch it, and measure the toggle."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from workbench.demo.portal import Portal, Socket

PROMPT = (
    "Fellow citizens of the Senate and of the House of Representatives: the state of the Union is strong, "
    "and our people are at peace. I ask the Congress to"
)
# A word that a feature is looked for, and a prompt on which adding that feature is easy to see.
WORD = "peace"
WORD_PROMPT = (
    "Fellow citizens of the Senate and of the House of Representatives: our country is at peace. "
    "This year the Congress must turn to the question of"
)
_CANDIDATES = 8
_TOGGLES = 100
STRENGTH = 4.0
_ADDED = 2.0


@dataclass(frozen=True)
class Toggles:
    """Round-trip times in milliseconds, from sending to having the answer."""

    computed: list[float]
    switched: list[float]
    tokens: int


def scale_edit(sae: dict[str, Any], index: int, strength: float) -> dict[str, Any]:
    """Multiply a feature's activation."""
    feature = {"sae": sae["fingerprint"], "index": index}
    return {
        "kind": "scale",
        "site": f"{sae['site']}.{sae['layer']}",
        "feature": feature,
        "strength": strength,
    }


def add_edit(sae: dict[str, Any], found: dict[str, Any], strength: float) -> dict[str, Any]:
    """Add a feature's direction at every token, in units of its 99.9th percentile."""
    details = found["details"]
    return {
        "kind": "add",
        "site": f"{sae['site']}.{sae['layer']}",
        "feature": {"sae": sae["fingerprint"], "index": details["index"]},
        "strength": strength,
        "unit": "p999",
        "unit_value": details["p999"] * details["decoder_norm"],
    }


async def wait_until_ready(socket: Socket) -> None:
    """Block until the resident model answers."""
    while (await socket.expect("state"))["state"] != "ready":
        pass


async def choose_feature(portal: Portal, model: str, sae: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Of the features strongest on the prompt, the one whose patch moves the next token most, and its result."""
    async with portal.socket(f"/ws/live/{model}/") as socket:
        await wait_until_ready(socket)
        await socket.send("open", prompt=PROMPT)
        await socket.expect("opened")
        await socket.send("read_features", sae=sae["fingerprint"], top=_CANDIDATES)
        found = (await socket.expect("features"))["features"]
        best: tuple[float, int, dict[str, Any]] | None = None
        for rev, feature in enumerate(found, 1):
            plan = {"edits": [scale_edit(sae, feature["index"], STRENGTH)]}
            await socket.send("apply", rev=rev, plan=plan)
            result = await socket.expect("result")
            if best is None or result["kl"] > best[0]:
                best = (result["kl"], feature["index"], result)
    assert best is not None, "no feature fires on the demo prompt"
    return best[1], best[2]


async def choose_direction(portal: Portal, model: str, sae: dict[str, Any]) -> dict[str, Any] | None:
    """Of the features that fire most on a word, the edit that makes the model say it most; None without any."""
    rows = portal.each("/features", sae=sae["id"], search=WORD)
    found = [portal.get(f"/features/{row['id']}") for row in rows if row["top_tokens"][:1] == [f" {WORD}"]]
    best: tuple[float, dict[str, Any]] | None = None
    async with portal.socket(f"/ws/live/{model}/") as socket:
        await wait_until_ready(socket)
        await socket.send("open", prompt=WORD_PROMPT)
        await socket.expect("opened")
        for rev, feature in enumerate(found[:_CANDIDATES], 1):
            edit = add_edit(sae, feature, _ADDED)
            await socket.send("apply", rev=rev, plan={"edits": [edit]})
            said = {token["text"]: token["patched"] for token in (await socket.expect("result"))["tokens"]}
            share = said.get(f" {WORD}", 0.0)
            if best is None or share > best[0]:
                best = share, edit
    return best and best[1]


async def measure_toggles(portal: Portal, model: str, plan: dict[str, Any]) -> tuple[Toggles, dict[str, Any]]:
    """Toggle a patch a hundred times over a real WebSocket.

    ``computed``: every answer is new (the strength differs each time), as while dragging a slider;
    ``switched``: the same patch on and off again, which the worker has seen before.
    """
    edit = plan["edits"][0]
    async with portal.socket(f"/ws/live/{model}/") as socket:
        await wait_until_ready(socket)
        await socket.send("open", prompt=PROMPT)
        opened = await socket.expect("opened")
        await socket.send("apply", rev=1, plan=plan)
        shown = await socket.expect("result")
        computed, switched = [], []
        for number in range(_TOGGLES):
            changed = {**edit, "strength": edit["strength"] * (1.0 + (number + 1) / 1000)}
            computed.append(await _round_trip(socket, 2 + number, {"edits": [changed]}))
        for number in range(_TOGGLES):
            switched.append(await _round_trip(socket, 1000 + number, plan if number % 2 else {"edits": []}))
    return Toggles(computed, switched, len(opened["prompt"])), shown


async def _round_trip(socket: Socket, rev: int, plan: dict[str, Any]) -> float:
    started = time.perf_counter()
    await socket.send("apply", rev=rev, plan=plan)
    result = await socket.expect("result")
    assert result["rev"] == rev
    return 1000 * (time.perf_counter() - started)


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
