"""Autoencoders on their way into a resident worker: nobody waits for them who need not."""

from __future__ import annotations

import asyncio
import threading

from microscope import protocol as p
from microscope.live import ResidentModel
from microscope.params import EditPlan
from tests.resident_talk import PROMPT, Client, add
from worker.resident.server import ResidentServer


async def test_nobody_waits_while_an_autoencoder_is_read(llama, sae, sae_folder, tmp_path, monkeypatch):
    resident, gate = ResidentModel(llama), threading.Event()
    read = resident.attached.read_sae

    def slowly(*args, **kwargs):
        assert gate.wait(60)
        return read(*args, **kwargs)

    monkeypatch.setattr(resident.attached, "read_sae", slowly)
    listening, address = await ResidentServer(resident).listen(f"unix:{tmp_path}/r.sock")
    async with listening:
        waits, works = [await Client.connect(address.removeprefix("unix:")) for _ in range(2)]
        waits.send(p.AttachSae(sae=sae.config.fingerprint, path=str(sae_folder)))
        try:
            assert isinstance(await works.ask(p.Open(prompt=PROMPT)), p.Opened)
            off = await works.ask(p.Apply(rev=1, plan=EditPlan()))
            assert isinstance(off, p.Computed)
        finally:
            gate.set()
        assert isinstance(await waits.receive(), p.SaeAttached)
        on = await works.ask(p.Apply(rev=2, plan=add(sae, 5.0)))
        assert isinstance(on, p.Computed)
        for client in (waits, works):
            client.writer.close()


async def test_an_autoencoder_is_read_on_when_the_request_is_answered_before(
    llama, sae, sae_folder, tmp_path, monkeypatch
):
    """Read once for all, also when a connection ends; every connection hears of the end, and a later request of a failure."""
    resident, gate, reads = ResidentModel(llama), threading.Event(), []
    read = resident.attached.read_sae

    def slowly(path, *, expect):
        reads.append(path)
        gate.wait(20)
        return read(path, expect=expect)

    monkeypatch.setattr(resident.attached, "read_sae", slowly)
    listening, address = await ResidentServer(resident).listen(f"unix:{tmp_path}/r.sock")

    def asks(wait_seconds: float | None, name: str = sae.config.fingerprint) -> p.AttachSae:
        return p.AttachSae(sae=name, path=str(sae_folder), wait_seconds=wait_seconds)

    async with listening:
        leaves, stays, listens = [await Client.connect(address.removeprefix("unix:")) for _ in range(3)]
        assert await leaves.ask(asks(0.05)) == p.Attaching(sae=sae.config.fingerprint)
        leaves.writer.close()
        assert isinstance(await stays.ask(asks(0.05)), p.Attaching)
        again = stays.send(asks(None))
        await asyncio.sleep(0.05)
        gate.set()
        there = p.SaeAttached(
            sae=sae.config.fingerprint, site=sae.config.site, n_latents=sae.config.n_latents
        )
        ended = p.Attached(sae=sae.config.fingerprint)
        replies = [await stays.frame() for _ in range(2)]
        assert {reply.id: reply.message for reply in replies} == {again: there, 0: ended}
        assert await listens.receive() == ended
        assert len(reads) == 1
        assert isinstance(await listens.ask(asks(5.0)), p.SaeAttached)  # in time: nothing is announced

        gate.clear()
        assert isinstance(await stays.ask(asks(0.05, "0" * 32)), p.Attaching)
        gate.set()
        for client in (stays, listens):
            reply = await client.frame()
            failed = reply.message
            assert isinstance(failed, p.Attached)
            assert (reply.id, failed.sae, failed.code) == (0, "0" * 32, "wrong_sae")
        count = len(reads)
        again = await listens.ask(asks(5.0, "0" * 32))
        assert isinstance(again, p.Failure)
        assert (again.code, len(reads)) == ("wrong_sae", count)
        for client in (stays, listens):
            client.writer.close()
