"""The live socket, through daphne and the portal to a real resident worker: what it answers."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.running import Lab
from tests.ws.talking import PROMPT, Talk, answer, fingerprint, held, plan_of, ready, talk

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


async def test_base_is_what_the_plain_model_says(lab: Lab) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = lab.site.folder / "models" / "tiny"
    tokens = AutoTokenizer.from_pretrained(folder)(PROMPT, return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(**tokens).logits[0, -1].softmax(-1)
    async with talk(lab.alice, lab.live) as socket:
        await ready(socket)
        await socket.send("open", prompt=PROMPT, top=20)
        opened = await socket.expect("opened")
    assert [token["token"] for token in opened["prompt"]] == tokens["input_ids"][0].tolist()
    # The resident model computes in bfloat16 where the processor has it.
    tolerance = 1e-5 if lab.model["dtype"] == "float32" else 0.03
    for shown in opened["next"]:
        assert shown["base"] == pytest.approx(float(expected[shown["token"]]), abs=tolerance)


async def test_toggle_answers_with_revision_and_fingerprint(lab: Lab, live: Talk, firing: int) -> None:
    plan = plan_of(lab, firing, 6.0)
    on = await answer(live, 1, plan)
    assert on["receipt"]["plan"] == fingerprint(plan)
    assert on["receipt"]["reused"] == "computed"
    assert on["receipt"]["edits"][0]["positions"]
    assert on["receipt"]["edits"][0]["max_delta"] > 0
    assert on["kl"] > 0
    assert any(token["base"] != token["patched"] for token in on["tokens"])
    assert on["server_ms"] >= on["timings"]["compute"] > 0

    off = await answer(live, 2, {"edits": []})
    assert (off["receipt"]["plan"], off["receipt"]["reused"], off["kl"]) == ("", "baseline", 0)
    assert all(token["base"] == token["patched"] for token in off["tokens"])

    again = await answer(live, 3, plan)
    assert again["receipt"]["reused"] == "cache"
    assert again["tokens"] == on["tokens"]

    muted = await answer(live, 4, plan_of(lab, firing, 6.0, enabled=False))
    assert (muted["receipt"]["plan"], muted["receipt"]["edits"][0]["noop"]) == ("", True)


async def test_pinned_tokens_are_always_among_the_answer(lab: Lab, live: Talk, firing: int) -> None:
    found = await answer(live, 1, plan_of(lab, firing, 2.0), top=1, pinned=[200, 201])
    assert {200, 201} <= {token["token"] for token in found["tokens"]}


async def test_latest_wins(lab: Lab, live: Talk, firing: int) -> None:
    """The worker is held while a burst arrives: afterwards it computes the newest, not all of them."""
    await answer(live, 1, plan_of(lab, firing, 1.5))  # the SAE is attached
    plans = {rev: plan_of(lab, firing, 1 + rev / 100) for rev in range(2, 32)}
    with held(lab):
        for rev, plan in plans.items():
            await live.send("apply", rev=rev, plan=plan)
        await live.works()  # the portal has passed all of them on
    replies: dict[int, dict[str, Any]] = {}
    while len(replies) < len(plans):
        message = await live.next()
        if message["type"] == "queued":
            continue
        assert message["type"] in ("result", "superseded"), message
        assert message["rev"] not in replies
        replies[message["rev"]] = message
    results = [rev for rev, message in replies.items() if message["type"] == "result"]
    assert results == sorted(results)
    assert results[-1] == 31
    assert replies[31]["receipt"]["plan"] == fingerprint(plans[31])
    assert len(results) <= 5


async def test_positions_move_where_the_plan_acts(lab: Lab, live: Talk, firing: int) -> None:
    positions = {"mode": "from", "start": 5}
    plan = plan_of(lab, firing, 5.0, kind="clamp_all", positions=positions)
    await live.send("read_positions", plan=plan)
    moved = await live.expect("position_shifts")
    assert moved["plan"] == fingerprint(plan)
    assert moved["kl"][:5] == [0.0] * 5
    assert moved["kl"][-1] > 0


def test_a_program_attaches_an_sae(lab: Lab) -> None:
    attached = lab.alice.post(f"/saes/{lab.sae['id']}/attach")
    assert attached == {
        "state": "attached",
        "sae": lab.sae["fingerprint"],
        "site": "resid_post.2",
        "n_latents": lab.sae["width"],
    }


async def test_killed_worker_is_told_and_the_session_comes_back(lab: Lab, live: Talk, firing: int) -> None:
    plan = plan_of(lab, firing, 5.0)
    before = await answer(live, 7, plan)
    resident = lab.site.resident(lab.model)
    killed = time.monotonic()
    resident.kill()
    lost = await live.expect("state")
    assert time.monotonic() - killed < 10  # by the end of the connection, long before a ping goes unanswered
    assert (lost["state"], lost["code"]) == ("lost", "resident_lost")
    assert lost["hint"]
    await live.send("apply", rev=8, plan=plan)
    refused = await live.until(lambda message: message["type"] == "failure")
    assert refused["code"] in ("model_not_loaded", "no_session")
    await ready(live)
    opened = await live.expect("opened")
    assert opened["reopened"]
    assert opened["session"] != before["session"]
    after = await live.expect("result")
    assert after["rev"] == 7
    assert after["receipt"]["plan"] == fingerprint(plan)
    assert after["tokens"] == before["tokens"]
    assert lab.site.resident(lab.model).pid != resident.pid
