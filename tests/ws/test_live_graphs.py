"""Graphs over the live socket and as jobs: the same graph either way, kept, and nothing of other projects."""

from __future__ import annotations

from typing import Any

import pytest

from tests.running import Lab
from tests.ws.talking import PROMPT, Talk, answer, plan_of, ready, talk

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

# Token 5 of the tiny model, at the last position.
TARGET = {"kind": "token", "token": 5}


async def ask(socket: Talk, lab: Lab, run: int, **fields: Any) -> None:
    asked = {"target": TARGET, "saes": [lab.sae["fingerprint"]], "shown": 6, "verify": False, **fields}
    await socket.send("read_provenance", run=run, **asked)


async def whole(socket: Talk, run: int) -> dict[str, Any]:
    """The document of a graph that comes piece by piece."""
    document = (await socket.expect("graph_begun"))["graph"]
    while True:
        message = await socket.until(
            lambda m: m["type"] in ("graph_update", "graph_ended") and m["run"] == run
        )
        if message["type"] == "graph_ended":
            assert message["reason"] == "done"
            return document
        update = message["update"]
        for kind in ("nodes", "edges", "accounts"):
            document[kind] = [*document[kind], *update[kind]]
        document["summary"] = update["summary"] or document["summary"]


async def test_a_graph_arrives_piece_by_piece_and_is_kept(lab: Lab, live: Talk) -> None:
    await ask(live, lab, 1)
    document = await whole(live, 1)
    assert document["prompt"] == PROMPT
    assert document["saes"][0]["name"] == lab.sae["name"], "called as people call it"
    assert document["edges"]
    assert document["completeness"] == pytest.approx(1, abs=1e-3)
    kept = lab.alice.post("/graphs/save", {"model": lab.model["id"], "name": "seen", "document": document})
    assert (kept["source"], kept["edges"]) == ("live", len(document["edges"]))
    again = lab.alice.get(f"/graphs/{kept['id']}/document")
    assert again["edges"] == document["edges"]
    lab.alice.delete(f"/graphs/{kept['id']}")


async def test_a_toggle_is_answered_between_the_pieces_and_a_graph_is_replaced_and_stopped(
    lab: Lab, live: Talk, firing: int
) -> None:
    await ask(live, lab, 1)
    await ask(live, lab, 2)
    ended = await live.until(lambda m: m["type"] == "graph_ended")
    assert (ended["run"], ended["reason"]) == (1, "replaced")
    assert (await answer(live, 1, plan_of(lab, firing, 3.0)))["rev"] == 1
    await live.send("stop_provenance")
    ended = await live.until(lambda m: m["type"] == "graph_ended")
    assert (ended["run"], ended["reason"] in ("stopped", "done")) == (2, True)
    await live.works()


async def test_what_is_refused_ends_the_graph_and_not_the_session(lab: Lab, live: Talk, firing: int) -> None:
    for number, (fields, code) in enumerate(
        (
            ({"saes": ["0" * 32]}, "unknown_sae"),
            ({"target": {**TARGET, "position": 999}}, "no_such_position"),
            ({"target": {"kind": "feature", "sae": "0" * 32, "index": 1}}, "unknown_sae"),
        )
    ):
        await ask(live, lab, number, **fields)
        failure = await live.next()
        assert (failure["type"], failure["code"]) == ("failure", code), failure
        ended = await live.next()
        assert (ended["type"], ended["run"], ended["reason"]) == ("graph_ended", number, "failed")
    await ask(live, lab, 9, hops=99)
    assert (await live.next())["code"] == "bad_graph_size"
    await ask(live, lab, 9, target={"kind": "token", "token": 5, "postion": 1})
    assert (await live.next())["code"] == "bad_message"
    assert (await answer(live, 1, plan_of(lab, firing, 3.0)))["rev"] == 1


async def test_why_a_head_attends(lab: Lab, live: Talk) -> None:
    await live.send("read_attended", layer=3, head=0, query=4, key=1, saes=[lab.sae["fingerprint"]], top=3)
    found = (await live.expect("attended"))["attended"]
    assert (found["layer"], found["head"], found["query"], found["key"]) == (3, 0, 4, 1)
    assert {one["sae"] for one in found["key_contributors"]} >= {lab.sae["fingerprint"]}
    await live.send("read_attended", layer=3, head=0, query=1, key=4)
    assert (await live.next())["code"] == "not_visible"
    await live.send("read_attended", layer=3, head=0, query=4, key=1, saes=["0" * 32])
    assert (await live.next())["code"] == "unknown_sae"


async def test_without_a_prompt_there_is_nothing_to_explain(lab: Lab) -> None:
    async with talk(lab.alice, lab.live) as socket:
        await ready(socket)
        await ask(socket, lab, 1)
        assert (await socket.until(lambda m: m["type"] == "failure"))["code"] == "no_session"


async def test_a_job_makes_the_same_graph(lab: Lab, live: Talk) -> None:
    """In float32 whatever the resident model runs in: the edges are the same."""
    body = {
        "model": lab.model["id"],
        "name": "by a job",
        "prompt": PROMPT,
        "target": {"kind": "token", "token": 5},
        "saes": [lab.sae["id"]],
        "shown": 6,
        "verify": False,
    }
    started = lab.alice.post("/graphs", body)
    done = lab.alice.wait(started["job"]["id"], lambda job: None)
    assert done["state"] == "succeeded", done
    graph = lab.alice.get(f"/graphs/{started['graph']['id']}")
    assert graph["state"] == "ready"
    document = lab.alice.get(f"/graphs/{graph['id']}/document")
    assert graph["edges"] == len(document["edges"]) > 0
    await ask(live, lab, 1)
    seen = await whole(live, 1)
    if lab.model["dtype"] == "float32":
        assert [e["from"] for e in document["edges"]] == [e["from"] for e in seen["edges"]]
    lab.alice.delete(f"/graphs/{graph['id']}")
