"""Frames, plans and prompts that are no good: each is answered, and the session goes on."""

from __future__ import annotations

import json
import random

import pytest

from tests.running import Lab
from tests.ws.talking import PROMPT, Talk, answer, plan_of, ready, talk
from workbench.demo.portal import PortalError

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


NO_MESSAGES: list[str | bytes] = [
    b"\x82\xa4type",
    "",
    "nonsense",
    "null",
    "[]",
    "{}",
    '{"type":"no such type"}',
    '{"type":"open"}',
    '{"type":"open","prompt":7}',
    '{"type":"open","prompt":"a","typo":1}',
    '{"type":"apply","rev":"1","plan":{}}',
    '{"type":"apply","rev":1,"plan":{"edits":[{"kind":7}]}}',
    '{"type":"result","session":"x"}',
    "[" * 5000,
    '{"type":"open","prompt":"\\ud800"}',
    '{"type":"open","prompt":"' + "x" * 600_000 + '"}',
]


async def test_frames_that_are_no_message(live: Talk, lab: Lab, firing: int) -> None:
    for frame in NO_MESSAGES:
        await live.raw.send(frame)
        failure = await live.next()
        assert (failure["type"], failure["code"]) == ("failure", "bad_message"), (frame[:60], failure)
        assert failure["message"]
        await live.works()
    # Nothing was lost: the session goes on.
    assert (await answer(live, 1, plan_of(lab, firing, 3.0)))["rev"] == 1


async def test_damaged_frames(live: Talk, lab: Lab, firing: int) -> None:
    """Real frames with bytes changed: an answer to every one, none of them a crash."""
    dice = random.Random(1)
    whole = json.dumps({"type": "apply", "rev": 5, "plan": plan_of(lab, firing, 2.0)})
    for _ in range(150):
        text = list(whole)
        for _ in range(dice.randint(1, 4)):
            text[dice.randrange(len(text))] = chr(dice.randrange(32, 127))
        await live.raw.send("".join(text))
        message = await live.next()
        assert message["type"] in ("failure", "result", "superseded"), message
        assert message.get("code") != "crashed", message
    await live.works()


@pytest.mark.parametrize(
    ("spelling", "code"),
    [("NaN", "bad_message"), ("Infinity", "bad_message"), ("1e999", "strength_not_finite")],
)
async def test_strength_that_is_no_number(
    lab: Lab, live: Talk, firing: int, spelling: str, code: str
) -> None:
    frame = json.dumps({"type": "apply", "rev": 1, "plan": plan_of(lab, firing, 123.0)})
    await live.raw.send(frame.replace("123.0", spelling))
    failure = await live.next()
    assert failure["type"] == "failure"
    assert failure["code"] in (code, "bad_message"), failure
    assert (await answer(live, 2, plan_of(lab, firing, 2.0)))["kl"] >= 0


async def test_plans_that_do_not_fit(lab: Lab, live: Talk, firing: int) -> None:
    unknown = {"sae": "0" * 32, "index": 0}
    for rev, (code, values) in enumerate(
        [
            ("unknown_edit_kind", {"kind": "run code"}),
            ("layer_out_of_range", {"site": "resid_post.4"}),
            ("bad_site", {"site": "somewhere"}),
            ("site_not_editable", {"site": "mlp_out.2"}),
            ("unknown_sae", {"feature": unknown}),
            ("feature_out_of_range", {"feature": {"sae": lab.sae["fingerprint"], "index": 96}}),
            ("bad_feature", {"feature": {"sae": lab.sae["fingerprint"], "index": -1}}),
            ("bad_positions", {"positions": {"mode": "from", "start": -1}}),
        ],
        1,
    ):
        await live.send("apply", rev=rev, plan=plan_of(lab, firing, 2.0, **values))
        failure = await live.next()
        assert (failure["type"], failure["code"], failure["rev"]) == ("failure", code, rev), failure
        assert failure["message"]
    await live.send("apply", rev=20, plan=plan_of(lab, firing, 2.0), top=0)
    assert (await live.next())["code"] == "bad_top"
    await live.send("apply", rev=21, plan=plan_of(lab, firing, 2.0), pinned=[999_999])
    assert (await live.next())["code"] == "no_such_token"
    assert (await answer(live, 30, plan_of(lab, firing, 2.0)))["rev"] == 30


async def test_prompts_that_do_not_fit(lab: Lab) -> None:
    async with talk(lab.alice, lab.live) as socket:
        await ready(socket)
        await socket.send("apply", rev=1, plan={"edits": []})
        assert (await socket.next())["code"] == "no_session"
        await socket.send("open", prompt=PROMPT)
        await socket.expect("opened")
        for prompt, code in (("the " * 200, "prompt_too_long"), ("a" * 100_001, "prompt_too_long")):
            await socket.send("open", prompt=prompt)
            failure = await socket.next()
            assert (failure["type"], failure["code"]) == ("failure", code)
            assert any(figure in failure["message"] for figure in ("128", "100000"))
        await socket.send("open", prompt="")
        assert (await socket.next())["type"] in ("failure", "opened")
        await socket.send("open", prompt="the senate")
        assert len((await socket.expect("opened"))["prompt"]) == 2
        assert (await answer(socket, 1, {"edits": []}))["kl"] == 0


def test_one_shot_questions_are_refused_alike(lab: Lab) -> None:
    """Over REST: the same codes, as 4xx answers."""
    lab.wait_loaded()
    for body, code in (
        ({"prompt": "the " * 200}, "prompt_too_long"),
        ({"prompt": PROMPT, "plan": plan_of(lab, 96, 2.0)}, "feature_out_of_range"),
        ({"prompt": PROMPT, "plan": plan_of(lab, 0, 2.0, site="resid_post.9")}, "layer_out_of_range"),
    ):
        with pytest.raises(PortalError, match=rf": 4\d\d .*{code}"):
            lab.alice.post("/inference", {"model": lab.model["id"], **body})
    with pytest.raises(PortalError, match=r": 400 "):
        lab.site.person("mallory").post("/inference", {"model": lab.model["id"], "prompt": PROMPT})
    answer = lab.alice.post("/inference", {"model": lab.model["id"], "prompt": PROMPT})
    assert sum(token["base"] for token in answer["tokens"]) > 0
