"""Peers of a resident worker that leave, say nothing, read nothing or say nonsense: nothing of them stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from apps.live.resident_client import ResidentClient
from microscope import protocol as p
from microscope.live import ResidentModel
from microscope.params import EditPlan
from tests.resident_talk import PROMPT, Client, add
from worker.resident import connection as connection_module
from worker.resident.server import ResidentServer

PATIENCE = 60


@pytest.fixture
async def served(llama, tmp_path) -> AsyncIterator[tuple[ResidentServer, str]]:
    server = ResidentServer(ResidentModel(llama))
    listening, address = await server.listen(f"unix:{tmp_path}/r.sock")
    async with listening:
        yield server, address


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


def place(address: str) -> str:
    return address.removeprefix("unix:")


@asynccontextmanager
async def held(server: ResidentServer) -> AsyncIterator[threading.Event]:
    """The compute thread is busy meanwhile."""
    gate, begun = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        gate.wait(PATIENCE)

    server.submit("somebody", wait)
    await until(begun.is_set)
    try:
        yield gate
    finally:
        gate.set()


async def test_health_is_told_at_once_whatever_is_computed(served, sae, sae_folder) -> None:
    server, address = served
    client = await Client.connect(place(address))
    await client.attach(sae, sae_folder)
    await client.ask(p.Open(prompt=PROMPT))
    result = await client.ask(p.Apply(rev=1, plan=add(sae, 5.0)))
    assert isinstance(result, p.Computed)
    assert result.receipt.edits[0].positions
    assert result.timings.compute > 0
    assert result.timings.queued >= 0
    [session] = server.resident.sessions.by_name.values()
    async with held(server):
        status = await client.ask(p.ReadStatus())
        assert isinstance(status, p.Status)
        waiting = client.send(p.Open(prompt=PROMPT), "other")
        later = await client.answer(client.send(p.ReadStatus()))
        assert isinstance(later, p.Status)
    assert (status.sessions, later.sessions, later.queued) == (1, 1, 1)
    assert status.saes == [sae.config.fingerprint]
    assert status.cache_bytes == session.measure()
    assert isinstance(await client.answer(waiting), p.Opened)
    assert (await client.ask(p.ReadStatus())).sessions == 2
    client.writer.close()


async def test_what_waits_when_its_session_is_closed_is_answered(served, sae) -> None:
    server, address = served
    client = await Client.connect(place(address))
    await client.ask(p.Open(prompt=PROMPT))
    async with held(server):
        waiting = (
            p.Apply(rev=1, plan=EditPlan()),
            p.ReadPositions(plan=EditPlan()),
            p.Generate(run=1, plan=EditPlan()),
        )
        asked = [client.send(request) for request in waiting]
        client.send(p.CloseSession())
        replies = {}
        async with asyncio.timeout(PATIENCE):
            while not set(asked) <= replies.keys():
                reply = await client.frame()
                if not isinstance(reply.message, p.Queued):
                    replies[reply.id] = reply.message
    applied, read, generated = (replies[number] for number in asked)
    assert applied == p.Superseded(rev=1)
    assert isinstance(read, p.Failure)
    assert read.code == "no_session"
    assert generated == p.GenerationEnded(run=1, reason="stopped")
    client.writer.close()


async def test_pages_that_leave_while_their_prompt_opens_leave_nothing(served, llama) -> None:
    """All pages of a portal share one connection, so the end of a page is not the end of its sessions."""
    from uuid import uuid4

    from apps.live.resident_client import ClientPool
    from apps.live.services import Paths, Resident
    from apps.live.session import LiveSession

    server, address = served
    pool, said = ClientPool(), []
    ready = Resident(address, p.ResidentState(state="ready"))
    model = uuid4()

    async def visit(leave_after: float | None) -> None:
        tasks: set[asyncio.Task[None]] = set()

        def spawn(coroutine):
            task = asyncio.create_task(coroutine)
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def say(message):
            said.append(message)

        async def look():
            return ready

        async def read_paths():
            return Paths({}, {})

        session = LiveSession(
            model_id=model, pool=pool, say=say, spawn=spawn, look=look, read_paths=read_paths
        )
        await session.show_state()
        session.open(p.Open(prompt=PROMPT))
        if leave_after is None:
            await until(lambda: any(isinstance(message, p.Opened) for message in said))
        else:
            await asyncio.sleep(leave_after)
        for task in tuple(tasks):
            task.cancel()
        session.end()

    async with held(server):
        for number in range(20):
            await visit(0.0 if number % 2 else 0.01)
        assert len(server.queue) <= 20  # each prompt is only to be forgotten
    for number in range(10):
        await visit(0.001 * number)
    await until(lambda: not len(server.queue) and server.status().sessions == 0)
    await visit(None)
    await until(lambda: server.status().sessions == 0)
    client = await pool.get(model, address)
    await until(lambda: not client.pending)
    client.close()


async def test_a_second_prompt_gives_up_the_first(served) -> None:
    server, address = served
    client = await ResidentClient.connect(address)
    async with held(server):
        first = asyncio.create_task(client.request(p.Open(prompt=PROMPT), p.Opened, "a", lambda queued: None))
        await until(lambda: len(server.queue))
        first.cancel()
        await asyncio.wait({first})
        assert client.pending == 0
    client.close()


async def test_a_text_nobody_waits_for_any_more_is_forgotten(served) -> None:
    _, address = served
    client = await ResidentClient.connect(address)
    await client.request(p.Open(prompt=PROMPT), p.Opened, "s")
    client.generate(p.Generate(run=1, plan=EditPlan(), max_tokens=3), "s")  # never iterated
    await until(lambda: not client.pending)
    client.close()


async def test_who_never_reads_is_dropped_and_others_are_served(served, sae, sae_folder, monkeypatch) -> None:
    server, address = served
    monkeypatch.setattr(connection_module, "MAX_UNSENT", 2**18)
    monkeypatch.setattr(connection_module, "MAX_PENDING", 50)
    other, greedy = [await Client.connect(place(address)) for _ in range(2)]
    await other.attach(sae, sae_folder)
    await greedy.ask(p.Open(prompt=PROMPT))
    asked = p.encode_request(2, p.ReadFeatures(sae=sae.config.fingerprint, indices=tuple(range(96))), "s")
    greedy.writer.transport.pause_reading()
    greedy.writer.write(asked * 600)
    most = 0
    async with asyncio.timeout(PATIENCE):
        while len(server.connections) > 1:
            status = await other.ask(p.ReadStatus())
            assert isinstance(status, p.Status)
            most = max(most, *(peer.pending for peer in server.connections))
    assert most <= 50
    greedy.writer.transport.abort()
    await until(lambda: server.status().sessions == 0)
    other.writer.close()


async def test_who_takes_nothing_for_long_is_dropped(served, monkeypatch) -> None:
    """Long before it has left as much unread as one may: memory is for those who are still there."""
    server, address = served
    monkeypatch.setattr(connection_module, "STALL_SECONDS", 0.5)
    silent = await Client.connect(place(address))
    await silent.ask(p.Open(prompt=PROMPT))
    silent.writer.transport.pause_reading()
    async with asyncio.timeout(PATIENCE):
        while server.connections:
            silent.writer.write(p.encode_request(3, p.ReadStatus()) * 500)
            await asyncio.sleep(0.05)
    await until(lambda: server.status().sessions == 0)
    silent.writer.transport.abort()


async def test_an_answer_no_frame_can_hold_is_a_refusal(served, sae, sae_folder, monkeypatch) -> None:
    _, address = served
    client = await Client.connect(place(address))
    await client.attach(sae, sae_folder)
    await client.ask(p.Open(prompt=PROMPT))
    monkeypatch.setattr(p, "MAX_FRAME_BYTES", 2000)
    many = tuple(range(96))
    number = client.send(p.ReadFeatures(sae=sae.config.fingerprint, indices=many))
    reply = await client.frame()
    assert isinstance(reply.message, p.Failure)
    assert (reply.id, reply.message.code) == (number, "answer_too_large")
    assert isinstance(await client.ask(p.ReadStatus()), p.Status)
    client.writer.close()


async def test_who_does_not_introduce_themselves_is_dropped(served, monkeypatch) -> None:
    server, address = served
    monkeypatch.setattr(connection_module, "HELLO_SECONDS", 0.2)
    for opening in (
        b"",
        b"\x00\x00",
        (p.MAX_HELLO_BYTES + 1).to_bytes(4, "big"),  # memory is for those who are known
        b"\x00\x00\x00\x00",
        b"\x00\x00\x00\x05\x91\x91\x91\x91\x91",
    ):
        reader, writer = await asyncio.open_unix_connection(place(address))
        writer.write(opening)
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
    for token in ("wrong", "falsch wie Ä", "\U0001f511"):
        client = Client(*await asyncio.open_unix_connection(place(address)))
        reply = await client.ask(p.Hello(token=token))
        assert isinstance(reply, p.Failure)
        assert reply.code == "not_authorised"
        assert await asyncio.wait_for(client.reader.read(), PATIENCE) == b""
        client.writer.close()
    await until(lambda: not server.connections)


@pytest.mark.parametrize(
    "body",
    [
        b"\x93\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xa0\x81\xa4type\xabread_status",  # a number beyond 63 bits
        b"\x93\x01\xa0\x82\xa4type\xabread_status\xa4more\x91" + b"\x91" * 20_000,  # deep
        b"\x93\x01\xa0\x81\xa4type",  # cut off
        b"\x93\x01\xa0\x81\xa4type\xabread_status\x00",  # something behind
        b"\x94\x01\xa0\x81\xa4type\xabread_status\x00",  # one element too many
        b"\x93\x01\xa4\xff\xfe\xfd\xfc\x81\xa4type\xabread_status",  # no UTF-8
        b"",
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million
        b"\xc6\xff\xff\xff\xff",
    ],
)
async def test_malformed_frames_are_answered_and_forgotten(served, body: bytes) -> None:
    _, address = served
    client = await Client.connect(place(address))
    client.writer.write(len(body).to_bytes(4, "big") + body)
    reply = await client.receive()
    assert isinstance(reply, p.Failure)
    assert reply.code == "bad_message"
    assert isinstance(await client.ask(p.ReadStatus()), p.Status)
    for top in (0, -5):
        reply = await client.ask(p.Open(prompt="a", top=top))
        assert isinstance(reply, p.Failure)
        assert reply.code == "bad_top"
    client.writer.close()


async def test_room_is_made_before_an_autoencoder_is_read(
    llama, sae, sae_folder, tmp_path, monkeypatch
) -> None:
    """Not after: for a moment both would be in memory."""
    import shutil

    from microscope.sae import load_sae, save_sae

    other_folder = tmp_path / "other"
    shutil.copytree(sae_folder, other_folder)
    other = load_sae(other_folder)
    other.b_dec.data += 1
    other.config.fingerprint = other.content_fingerprint()
    save_sae(other, other_folder)
    resident = ResidentModel(
        llama, attached_bytes=int(1.5 * sum(t.nbytes for t in sae.state_dict().values()))
    )
    server = ResidentServer(resident)
    listening, address = await server.listen(f"unix:{tmp_path}/r.sock")
    held_while_reading = []
    read = resident.attached.saes.read

    def watched(path: Path):
        held_while_reading.append(len(resident.attached.saes.in_memory))
        return read(path)

    monkeypatch.setattr(resident.attached.saes, "read", watched)
    async with listening:
        client = await Client.connect(place(address))
        await client.attach(sae, sae_folder)
        await client.attach(other, other_folder)
        await client.ask(p.Open(prompt=PROMPT))
        for _ in range(2):
            for rev, one in enumerate((sae, other)):
                assert isinstance(await client.ask(p.Apply(rev=rev, plan=add(one, 5.0))), p.Computed)
        client.writer.close()
    assert len(held_while_reading) > 2
    assert set(held_while_reading) == {0}
