"""Many people on one model: who gets in, and that each gets what is theirs alone."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any
from uuid import uuid4

import pytest
import websockets

from tests.running import PASSWORD, Lab, Person
from tests.ws.talking import (
    NOT_FOUND,
    PROMPT,
    SIGNED_OUT,
    Talk,
    answer,
    close_code,
    fingerprint,
    plan_of,
    ready,
    talk,
    written,
)

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


async def test_two_people_do_not_see_each_other(lab: Lab, firing: int, live: Talk) -> None:
    plan = plan_of(lab, firing, 8.0)
    alone = await answer(live, 1, plan)
    async with talk(lab.alice, lab.live) as other:
        await ready(other)
        await other.send("open", prompt=PROMPT)
        await other.expect("opened")
        for rev in range(2, 12):
            mine, theirs = await asyncio.gather(answer(live, rev, plan), answer(other, rev, {"edits": []}))
            assert mine["tokens"] == alone["tokens"]
            assert theirs["kl"] == 0


async def test_nobody_reaches_or_hears_another_persons_session(lab: Lab, live: Talk, firing: int) -> None:
    """A colleague on the same model, who even knows the name of alice's session, gets nothing of it."""
    colleague = lab.site.person("bob")
    members = f"/projects/{lab.project['id']}/members"
    member = lab.alice.post(members, {"user": "bob", "role": "editor"})
    await live.send("open", prompt=PROMPT)
    session = (await live.expect("opened"))["session"]
    plan = plan_of(lab, firing, 6.0)
    before = await answer(live, 1, plan)
    assert before["session"] == session
    for path in (f"{lab.live}{session}/", f"/ws/live/{session}/", f"/ws/session/{session}/"):
        assert await close_code(colleague, path) == (NOT_FOUND, [])
    async with talk(colleague, lab.live) as other:
        await ready(other)
        foreign: list[tuple[str, dict[str, Any]]] = [
            ("open", {"prompt": "war"}),
            ("apply", {"rev": 2, "plan": {"edits": []}}),
            ("read_features", {"sae": lab.sae["fingerprint"]}),
            ("read_positions", {"plan": plan}),
            ("generate", {"run": 1, "plan": plan}),
            ("stop_generation", {}),
        ]
        for type, fields in foreign:
            await other.send(type, session=session, **fields)
            assert (await other.next())["code"] == "bad_message"
        await other.send("apply", rev=2, plan=plan)
        assert (await other.next())["code"] == "no_session"  # there is no session but one's own
        await live.send("generate", run=5, plan=plan, max_tokens=30, temperature=1.0, seed=2)
        await other.send("stop_generation")
        assert (await other.next())["code"] == "no_session"
        await live.send("apply", rev=2, plan=plan)
        tokens, reason = await written(live, 5)
        assert reason in ("tokens", "end_of_text")
        assert {token["session"] for token in tokens} == {session}
        await other.works()  # and has heard nothing in between
        # with a session of one's own, answers bear its name and are to one's own prompt
        await other.send("open", prompt="war")
        own = (await other.expect("opened"))["session"]
        assert own != session
        mine, theirs = await asyncio.gather(answer(live, 3, plan), answer(other, 3, plan))
        assert (mine["session"], theirs["session"]) == (session, own)
        assert mine["tokens"] == before["tokens"]
        assert mine["receipt"]["baseline"] != theirs["receipt"]["baseline"]
    assert (await answer(live, 4, plan))["tokens"] == before["tokens"]
    lab.alice.delete(f"{members}/{member['user']}")


async def test_eight_people_toggle_for_half_a_minute_and_each_gets_what_is_theirs(
    lab: Lab, firing: int, live: Talk
) -> None:
    """Everybody's every answer is the one the plan gives alone; nobody waits long, nothing is left over."""
    plans = [plan_of(lab, firing, strength) for strength in (0.0, 0.5, 2.0, 8.0)] + [{"edits": []}]
    alone = [(await answer(live, rev, plan))["tokens"] for rev, plan in enumerate(plans, 1)]
    assert len({json.dumps(tokens) for tokens in alone}) >= 4
    waits: list[float] = []

    async def person(number: int, until: float) -> int:
        rng, done = random.Random(number), 0
        async with talk(lab.alice, lab.live) as socket:
            await ready(socket)
            await socket.send("open", prompt=PROMPT)
            await socket.expect("opened")
            while time.monotonic() < until:
                choice, started = rng.randrange(len(plans)), time.monotonic()
                result = await answer(socket, done + 1, plans[choice])
                waits.append(time.monotonic() - started)
                assert result["receipt"]["plan"] == fingerprint(plans[choice])
                shown = {t["token"]: t["patched"] for t in result["tokens"]}
                assert shown == pytest.approx({t["token"]: t["patched"] for t in alone[choice]}, abs=1e-5)
                done += 1
                await asyncio.sleep(rng.random() / 4)
        return done

    counts = await asyncio.gather(*(person(n, time.monotonic() + 30) for n in range(8)))
    # Generous: how quick it is on an idle machine, the benchmarks measure.
    assert 4 * min(counts) >= max(counts) >= 4, "everybody had their turns"
    assert sorted(waits)[len(waits) * 95 // 100] < 10
    again = [(await answer(live, 10 + rev, plan))["tokens"] for rev, plan in enumerate(plans)]
    assert again == alone


async def test_other_peoples_models_do_not_exist(lab: Lab) -> None:
    """The same code, and not a word, for a foreign model and for one that never was."""
    outsider = lab.site.person("mallory")
    assert await close_code(outsider, lab.live) == (NOT_FOUND, [])
    assert await close_code(outsider, f"/ws/live/{uuid4()}/") == (NOT_FOUND, [])
    assert await close_code(outsider, "/ws/live/no-id/") == (NOT_FOUND, [])
    assert await close_code(outsider, "/ws/") == (NOT_FOUND, [])


async def test_strangers_and_foreign_pages(lab: Lab) -> None:
    address = lab.site.url.replace("http", "ws", 1) + lab.live
    async with websockets.connect(address, origin=lab.site.url) as raw:
        assert await Talk(raw).closed() == SIGNED_OUT
    with pytest.raises(websockets.InvalidStatus, match="403"):
        async with websockets.connect(address, origin="https://evil.example"):
            pass


async def test_leaving_the_project_closes_the_socket(lab: Lab) -> None:
    viewer = lab.site.person("vera")
    members = f"/projects/{lab.project['id']}/members"
    member = lab.alice.post(members, {"user": "vera", "role": "viewer"})
    async with talk(viewer, lab.live) as socket:
        await ready(socket)
        await socket.send("open", prompt=PROMPT)
        await socket.expect("opened")
        lab.alice.delete(f"{members}/{member['user']}")
        assert await socket.closed() == NOT_FOUND
    assert (await close_code(viewer, lab.live))[0] == NOT_FOUND


async def test_signing_out_closes_the_socket(lab: Lab) -> None:
    second = Person(lab.site.url, "alice", PASSWORD)
    async with talk(second, lab.live) as socket, talk(lab.alice, lab.live) as other:
        await ready(socket)
        await ready(other)
        second.sign_out()
        assert await socket.closed() == SIGNED_OUT
        await other.works()  # alice's other session goes on
    assert (await close_code(second, lab.live))[0] == SIGNED_OUT
