"""Texts that are written token by token over the live socket."""

from __future__ import annotations

import pytest

from tests.running import Lab
from tests.ws.talking import Talk, fingerprint, held, plan_of, written

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


async def test_both_columns_are_written_and_a_toggle_shows(lab: Lab, live: Talk, firing: int) -> None:
    plan = plan_of(lab, firing, 8.0, kind="clamp_all")
    await live.send("generate", run=1, plan=plan, max_tokens=10, temperature=0.8, seed=7)
    tokens, reason = await written(live, 1)
    assert reason in ("tokens", "end_of_text")
    assert [token["number"] for token in tokens] == list(range(len(tokens)))
    assert {token["plan"] for token in tokens} == {fingerprint(plan)}
    await live.send("generate", run=2, plan=plan, max_tokens=10, temperature=0.8, seed=7)
    again, _ = await written(live, 2)
    assert [(t["base"], t["patched"]) for t in again] == [(t["base"], t["patched"]) for t in tokens]
    with held(lab):
        await live.send("generate", run=3, plan=plan, max_tokens=60, temperature=0.8, seed=7)
        await live.send("apply", rev=1, plan={"edits": []})
        await live.works()  # both have been passed on
    late, _ = await written(live, 3)
    assert late[-1]["plan"] == ""
    # what the base column says does not depend on the plan
    shared = min(len(late), len(tokens))
    assert [t["base"] for t in late][:shared] == [t["base"] for t in tokens][:shared]


async def test_a_continuation_is_stopped_and_bad_wishes_are_refused(lab: Lab, live: Talk) -> None:
    with held(lab):
        await live.send("generate", run=1, plan={"edits": []}, max_tokens=80, temperature=2.0)
        await live.send("stop_generation")
        await live.works()  # both have been passed on
    _, reason = await written(live, 1)
    assert reason in ("stopped", "end_of_text")
    await live.send("generate", run=2, plan={"edits": []}, max_tokens=0)
    assert (await live.expect("failure"))["code"] == "bad_generation"
    assert (await live.expect("generation_ended"))["reason"] == "failed"
    await live.works()
