"""The resident worker as a process, over its socket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from microscope import protocol as p
from microscope.live import ResidentModel
from microscope.params import SITE_KINDS, Edit, EditPlan, plan_fingerprint
from microscope.patching import save_adapter
from tests.live_rig import random_adapter
from tests.resident_talk import PROMPT, Client, add
from worker.resident.fair_queue import FairQueue, Superseded, Work
from worker.resident.server import ResidentServer


@pytest.fixture(scope="module")
def address(tmp_path_factory, model_folders) -> Iterator[str]:
    socket = tmp_path_factory.mktemp("run") / "r.sock"
    command = [
        sys.executable,
        "-m",
        "worker.resident",
        "--model",
        str(model_folders["llama"]),
        "--listen",
        f"unix:{socket}",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["event"] == "ready"
    assert ready["model"]["dtype"] == "float32"
    running = ready["model"]["running"]
    assert (running["path"], running["reason"], running["from_start"]) == ("fast", "", False)
    assert [(site["kind"], site["blocks"]) for site in running["sites"]] == [
        (kind, [0, 1, 2, 3]) for kind in SITE_KINDS
    ]
    yield str(socket)
    process.terminate()
    assert process.wait(10) == 0


async def test_a_session_from_hello_to_result(address, sae, sae_folder):
    client = await Client.connect(address)
    await client.attach(sae, sae_folder)
    opened = await client.ask(p.Open(prompt=PROMPT))
    assert isinstance(opened, p.Opened)
    assert "".join(t.text for t in opened.prompt).replace(" ", "") == PROMPT.replace(" ", "")
    result = await client.ask(p.Apply(rev=1, plan=add(sae, 5.0), top=4, pinned=(7,)))
    assert isinstance(result, p.Computed)
    assert (result.session, result.rev, result.receipt.reused) == ("s", 1, "computed")
    assert result.receipt.path == opened.path == "fast"
    assert result.kl > 0
    assert 7 in {t.token for t in result.tokens}
    assert result.receipt.edits[0].positions
    assert result.receipt.edits[0].max_delta == pytest.approx(5.0, rel=1e-4)
    base = {t.token: t.base for t in opened.next}
    assert all(t.base == pytest.approx(base[t.token]) for t in result.tokens if t.token in base)
    off = await client.ask(p.Apply(rev=2, plan=EditPlan()))
    assert isinstance(off, p.Computed)
    assert (off.kl, off.receipt.reused, off.receipt.plan) == (0.0, "baseline", "")
    features = await client.ask(p.ReadFeatures(sae=sae.config.fingerprint, top=3))
    assert isinstance(features, p.Features)
    assert all(f.values[place] == 0 for f in features.features for place in features.left_out)
    assert len(features.features[0].values) == len(opened.prompt)
    assert isinstance(await client.ask(p.CloseSession()), p.Done)
    gone = await client.ask(p.Apply(rev=3, plan=EditPlan()))
    assert isinstance(gone, p.Failure)
    assert gone.code == "no_session"


async def test_newer_revisions_overtake_waiting_ones(address, sae, sae_folder):
    client = await Client.connect(address)
    await client.attach(sae, sae_folder)
    await client.ask(p.Open(prompt=PROMPT))
    for rev in range(1, 41):
        client.send(p.Apply(rev=rev, plan=add(sae, rev / 10)))
    replies = [await client.receive() for _ in range(40)]
    results = [r for r in replies if isinstance(r, p.Computed)]
    assert max(r.rev for r in results) == 40
    assert any(isinstance(r, p.Superseded) for r in replies)
    assert {r.rev for r in replies if isinstance(r, p.Computed | p.Superseded)} == set(range(1, 41))


async def receive_until_end(client: Client, request: int) -> tuple[list[p.Generated], p.ResidentReply]:
    """The tokens of a generation and what ended it."""
    tokens: list[p.Generated] = []
    while True:
        frame = await client.frame()
        if frame.id != request:
            continue
        if not isinstance(frame.message, p.Generated):
            return tokens, frame.message
        tokens.append(frame.message)


async def test_both_columns_stream_token_by_token_and_a_toggle_shows_at_the_next_token(
    address, sae, sae_folder
):
    client = await Client.connect(address)
    await client.attach(sae, sae_folder)
    await client.ask(p.Open(prompt=PROMPT))
    strong = add(sae, 40.0)
    started = client.send(p.Generate(run=1, plan=strong, max_tokens=12))
    tokens, end = await receive_until_end(client, started)
    assert isinstance(end, p.GenerationEnded)
    assert (end.reason, len(tokens)) == ("tokens", 12)
    assert {t.plan for t in tokens} == {plan_fingerprint(strong)}
    assert [t.number for t in tokens] == list(range(12))
    assert [t.base for t in tokens] != [t.patched for t in tokens]
    # a plan that was sent next is applied next, even when both arrive at once
    generate, mute = p.Generate(run=1, plan=strong, max_tokens=3), p.Apply(rev=1, plan=EditPlan())
    started = client.send_at_once((generate, "s"), (mute, "s"))
    tokens, _ = await receive_until_end(client, started)
    assert [t.plan for t in tokens] == [""] * 3
    # the same again, switched off after the first token that arrived
    plans = [plan_fingerprint(strong)]
    while plans[-1]:  # on a busy machine a text may be through before the switch arrives: then once more
        started = client.send(p.Generate(run=1, plan=strong, max_tokens=40))
        while (first := await client.frame()).id != started:
            pass
        client.send(p.Apply(rev=2, plan=EditPlan()))
        rest, _ = await receive_until_end(client, started)
        plans = [t.plan for t in (first.message, *rest)]
        assert plans[0] == plan_fingerprint(strong)
        assert plans == sorted(plans, reverse=True)


async def test_a_generation_stops_and_is_replaced(address):
    """What ends it is sent at once with its beginning, so that it cannot be through before."""
    client = await Client.connect(address)
    for ending, reason in (
        (p.Generate(run=2, plan=EditPlan(), max_tokens=1), "replaced"),
        (p.StopGeneration(), "stopped"),
        (p.CloseSession(), "stopped"),
    ):
        await client.ask(p.Open(prompt="the"))
        generate = p.Generate(run=1, plan=EditPlan(), max_tokens=100)
        started = client.send_at_once((generate, "s"), (ending, "s"))
        tokens, end, other = [], None, None
        while end is None or other is None:
            frame = await client.frame()
            if frame.id == started and not isinstance(frame.message, p.Generated):
                end = frame.message
            elif frame.id == started:
                tokens.append(frame.message)
            elif not isinstance(frame.message, p.Generated):
                other = frame.message
        assert end == p.GenerationEnded(run=1, reason=reason)
        assert len(tokens) < 10
        assert isinstance(other, p.GenerationEnded | p.Done)
    await client.ask(p.Open(prompt="the"), "t")
    for session, request, code in (
        ("s", p.Generate(run=1, plan=EditPlan()), "no_session"),
        ("t", p.Generate(run=1, plan=EditPlan(), max_tokens=0), "bad_generation"),
    ):
        reply = await client.ask(request, session)
        assert isinstance(reply, p.Failure)
        assert reply.code == code
    assert isinstance(await client.ask(p.ReadStatus()), p.Status)


async def test_others_toggle_between_the_tokens_of_a_long_generation(address):
    """Five people ask while a sixth has the model write: each is answered after a token or two per turn."""
    client = await Client.connect(address)
    people = [f"other{n}" for n in range(5)]
    for name in ("s", *people):
        await client.ask(p.Open(prompt="people ask"), name)
    long = p.Generate(run=1, plan=EditPlan(), max_tokens=60, temperature=1.0)
    client.send_at_once((long, "s"), *((p.Apply(rev=1, plan=EditPlan()), name) for name in people))
    kinds = []
    while kinds.count("Computed") < len(people):
        kinds.append(type(await client.receive()).__name__)
    assert kinds.count("Generated") <= 2 * len(people)
    client.send(p.StopGeneration())
    while not isinstance(await client.receive(), p.Done):
        pass


async def test_adapters_attach_by_fingerprint_and_positions_are_read(address, tmp_path, llama):
    client = await Client.connect(address)
    adapter = random_adapter(llama, 2)
    save_adapter(adapter, tmp_path)
    reply = await client.ask(p.AttachAdapter(adapter=adapter.fingerprint, path=str(tmp_path)))
    assert isinstance(reply, p.AdapterAttached)
    assert (reply.modules, reply.rank) == (len(adapter.factors), 2)
    assert adapter.fingerprint in (await client.ask(p.ReadStatus())).adapters
    await client.ask(p.Open(prompt=PROMPT))
    plan = EditPlan(edits=(Edit(kind="lora", adapter=adapter.fingerprint, strength=1.0),))
    result = await client.ask(p.Apply(rev=1, plan=plan))
    assert isinstance(result, p.Computed)
    shifts = await client.ask(p.ReadPositions(plan=plan))
    assert isinstance(shifts, p.PositionShifts)
    assert shifts.kl[-1] == pytest.approx(result.kl, rel=1e-3, abs=1e-6)
    assert shifts.plan == result.receipt.plan
    wrong = await client.ask(p.AttachAdapter(adapter="0" * 32, path=str(tmp_path)))
    assert isinstance(wrong, p.Failure)
    assert wrong.code == "wrong_adapter"


async def test_sessions_of_two_connections_share_no_names(address, sae, sae_folder):
    one, two = await Client.connect(address), await Client.connect(address)
    await one.attach(sae, sae_folder)
    await one.ask(p.Open(prompt=PROMPT))
    refused = await two.ask(p.Apply(rev=1, plan=EditPlan()))
    assert isinstance(refused, p.Failure)
    assert refused.code == "no_session"
    await two.ask(p.Open(prompt="people ask the house"))
    first = await one.ask(p.Apply(rev=1, plan=EditPlan()))
    second = await two.ask(p.Apply(rev=1, plan=EditPlan()))
    assert first.receipt.baseline != second.receipt.baseline


async def test_sessions_end_with_their_connection(address):
    watcher, other = await Client.connect(address), await Client.connect(address)
    before = (await watcher.ask(p.ReadStatus())).sessions
    await other.ask(p.Open(prompt=PROMPT))
    assert (await watcher.ask(p.ReadStatus())).sessions == before + 1
    other.writer.close()
    for _ in range(50):
        await asyncio.sleep(0.05)
        if (await watcher.ask(p.ReadStatus())).sessions == before:
            return
    pytest.fail("the session outlived its connection")


async def test_connections_cut_in_the_middle_of_their_work_change_nothing_for_others(
    address, sae, sae_folder
):
    stays = await Client.connect(address)
    await stays.attach(sae, sae_folder)
    before = (await stays.ask(p.ReadStatus())).sessions
    await stays.ask(p.Open(prompt=PROMPT))
    plan, strong = add(sae, 5.0), add(sae, 40.0)
    first = await stays.ask(p.Apply(rev=1, plan=plan))
    for turn in range(12):
        cut = await Client.connect(address)
        work = [
            p.Open(prompt=PROMPT),
            p.Apply(rev=1, plan=strong),
            p.Generate(run=1, plan=strong, max_tokens=100),
            p.Apply(rev=2, plan=plan),
        ]
        cut.send_at_once(*((request, "s") for request in work))
        for _ in range(turn % 4):  # cut at different places
            await cut.receive()
        cut.writer.transport.abort()
        muted = await stays.ask(p.Apply(rev=2 * turn + 2, plan=EditPlan()))
        again = await stays.ask(p.Apply(rev=2 * turn + 3, plan=plan))
        assert (again.tokens, again.kl, again.receipt.baseline) == (
            first.tokens,
            first.kl,
            first.receipt.baseline,
        )
        assert (muted.kl, muted.receipt.baseline) == (0, first.receipt.baseline)
    while (await stays.ask(p.ReadStatus())).sessions != before + 1:
        await asyncio.sleep(0.05)


async def test_errors_are_answers_and_the_connection_goes_on(address):
    client = await Client.connect(address)
    for request, code in (
        (p.Open(prompt=""), "empty_prompt"),
        (p.Open(prompt="the " * 1000), "prompt_too_long"),
        (p.AttachSae(sae="x", path="/nowhere"), "no_sae"),
    ):
        number = client.send(request)
        reply = await client.frame()
        assert isinstance(reply.message, p.Failure)
        assert (reply.id, reply.message.code) == (number, code)
    for garbage in (b"\xc1", b"\x80", b"\x81\xa4type\xa5apply", b"not msgpack"):
        client.writer.write(len(garbage).to_bytes(4, "big") + garbage)
        reply = await client.receive()
        assert isinstance(reply, p.Failure)
        assert reply.code == "bad_message"
    assert isinstance(await client.ask(p.ReadStatus()), p.Status)


async def test_oversized_frames_and_missing_greetings_end_the_connection(address):
    for opening in (
        (p.MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        p.encode_request(1, p.ReadStatus()),
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(opening)
        assert await asyncio.wait_for(reader.read(), 10) == b""
    assert isinstance(await (await Client.connect(address)).ask(p.ReadStatus()), p.Status)


async def test_another_protocol_version_is_told_so(address):
    client = Client(*await asyncio.open_unix_connection(address))
    reply = await client.ask(p.Hello(protocol=99))
    assert isinstance(reply, p.Failure)
    assert reply.code == "protocol_mismatch"
    assert "99" in reply.message


def test_the_socket_belongs_to_its_owner(address):
    assert os.stat(address).st_mode & 0o777 == 0o600


def test_a_model_that_cannot_be_loaded_is_reported_in_one_line(tmp_path):
    command = [
        sys.executable,
        "-m",
        "worker.resident",
        "--model",
        str(tmp_path),
        "--listen",
        f"unix:{tmp_path}/r",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3
    assert json.loads(done.stdout)["code"] == "unknown_model"


def test_tcp_needs_a_secret(tmp_path):
    command = [
        sys.executable,
        "-m",
        "worker.resident",
        "--model",
        str(tmp_path),
        "--listen",
        "tcp:127.0.0.1:0",
    ]
    environment = {k: v for k, v in os.environ.items() if k != "WORKBENCH_RESIDENT_TOKEN"}
    assert "secret" in subprocess.run(command, capture_output=True, text=True, env=environment).stderr


async def test_turns_are_fair_and_drop_what_is_superseded():
    loop, queue = asyncio.get_running_loop(), FairQueue()
    works = {}
    for session, revs in (("a", (1, 2, 3)), ("b", (1,)), ("c", (None, 5))):
        for rev in revs:
            works[session, rev] = Work(lambda: None, loop.create_future(), rev)
            queue.put(session, works[session, rev])
    assert len(queue) == 4
    assert isinstance(works["a", 1].done.exception(), Superseded)
    assert isinstance(works["a", 2].done.exception(), Superseded)
    order = [await queue.next() for _ in range(4)]
    assert order == [works["a", 3], works["b", 1], works["c", None], works["c", 5]]
    queue.put("a", works["a", 3])
    queue.forget("a")
    assert works["a", 3].done.cancelled()


async def test_who_waits_is_told_how_many_come_first(llama, tmp_path):
    """One piece of work runs, one waits before and one behind; the place moves up and the answer comes."""
    server = ResidentServer(ResidentModel(llama))
    listening, address = await server.listen(f"unix:{tmp_path}/r.sock")
    gates = [threading.Event() for _ in range(3)]
    async with listening:
        client = await Client.connect(address.removeprefix("unix:"))
        server.submit("x", gates[0].wait)
        server.submit("y", gates[1].wait)
        client.send(p.Open(prompt=PROMPT))
        assert await client.receive() == p.Queued(ahead=2)
        server.submit("z", gates[2].wait)
        gates[0].set()
        assert await client.receive() == p.Queued(ahead=1)
        gates[1].set()
        assert isinstance(await client.receive(), p.Opened)
        status = await client.ask(p.ReadStatus())
        assert isinstance(status, p.Status)
        assert 0 <= status.idle_seconds < 60
        gates[2].set()
        client.writer.close()


async def test_positions_in_the_queue_count_everybodys_turns():
    loop, queue = asyncio.get_running_loop(), FairQueue()
    works = {
        (name, n): Work(lambda: None, loop.create_future())
        for name in "abc"
        for n in range(2 + (name == "b"))
    }
    for (name, _), work in works.items():
        queue.put(name, work)
    positions = {key: queue.ahead(work) for key, work in works.items()}
    for number in range(len(works)):
        key = next(key for key, work in works.items() if queue.ahead(work) == 1)
        assert await queue.next() is works[key]
        assert positions[key] == number + 1
        assert queue.ahead(works[key]) == 0


def test_a_model_on_another_host_is_reached_by_its_port_and_secret(tmp_path, model_folders):
    command = [sys.executable, "-m", "worker.resident", "--model", str(model_folders["llama"])]
    process = subprocess.Popen(
        [*command, "--listen", "tcp:127.0.0.1:0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "WORKBENCH_RESIDENT_TOKEN": "sesame"},
    )
    try:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        kind, host, port = address.split(":")
        assert (kind, host) == ("tcp", "127.0.0.1")
        assert int(port) > 0

        async def greet(token: str) -> p.ResidentReply:
            client = Client(*await asyncio.open_connection(host, int(port)))
            return await client.ask(p.Hello(token=token))

        assert isinstance(asyncio.run(greet("sesame")), p.Welcome)
        refused = asyncio.run(greet("open"))
        assert isinstance(refused, p.Failure)
        assert refused.code == "not_authorised"
    finally:
        process.terminate()
        process.wait(10)
