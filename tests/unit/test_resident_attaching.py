"""Autoencoders on their way into a resident worker: nobody waits for them who need not."""

from __future__ import annotations

import asyncio
import threading

from microscope.live import ResidentModel
from microscope.params import EditPlan
from tests.resident_talk import PROMPT, Client, add
from worker import protocol as p
from worker.resident.server import ResidentServer


async def test_nobody_waits_while_an_autoencoder_is_read(llama, sae, sae_folder, tmp_path, monkeypatch):
    resident, gate = ResidentModel(llama), threading.Event()
    read = resident.read_sae

    def slowly(*args, **kwargs):
        assert gate.wait(60)
        return read(*args, **kwargs)

    monkeypatch.setattr(resident, "read_sae", slowly)
    listening, address = await ResidentServer(resident).listen(f"unix:{tmp_path}/r.sock")
    async with listening:
        waits, works = [await Client.connect(address.removeprefix("unix:")) for _ in range(2)]
        waits.send(p.AttachSae(id=1, sae=sae.config.fingerprint, path=str(sae_folder)))
        try:
            assert isinstance(await works.ask(p.OpenSession(id=2, session="s", prompt=PROMPT)), p.Opened)
            off = await works.ask(p.Apply(id=3, session="s", rev=1, plan=EditPlan()))
            assert isinstance(off, p.Result)
        finally:
            gate.set()
        assert isinstance(await waits.receive(), p.Attached)
        on = await works.ask(p.Apply(id=4, session="s", rev=2, plan=add(sae, 5.0)))
        assert isinstance(on, p.Result)
        for client in (waits, works):
            client.writer.close()


async def test_an_autoencoder_is_read_on_when_who_asked_runs_out_of_patience(
    llama, sae, sae_folder, tmp_path, monkeypatch
):
    """Read once for all who ask, whoever hangs up; everybody hears of the end, and who asks again of a failure."""
    resident, gate, reads = ResidentModel(llama), threading.Event(), []
    read = resident.read_sae

    def slowly(path, *, expect):
        reads.append(path)
        gate.wait(20)
        return read(path, expect=expect)

    monkeypatch.setattr(resident, "read_sae", slowly)
    listening, address = await ResidentServer(resident).listen(f"unix:{tmp_path}/r.sock")

    def asks(number: int, patience: float | None, name: str = sae.config.fingerprint) -> p.AttachSae:
        return p.AttachSae(id=number, sae=name, path=str(sae_folder), patience=patience)

    async with listening:
        leaves, stays, listens = [await Client.connect(address.removeprefix("unix:")) for _ in range(3)]
        assert await leaves.ask(asks(1, 0.05)) == p.Attaching(id=1, sae=sae.config.fingerprint)
        leaves.writer.close()
        assert isinstance(await stays.ask(asks(2, 0.05)), p.Attaching)
        stays.send(asks(3, None))
        await asyncio.sleep(0.05)
        gate.set()
        replies = [await stays.receive() for _ in range(2)]
        [there] = [reply for reply in replies if isinstance(reply, p.Attached)]
        assert (there.id, there.sae, there.site) == (3, sae.config.fingerprint, sae.config.site)
        ended = p.AttachEnded(id=0, sae=sae.config.fingerprint)
        assert ended in replies
        assert await listens.receive() == ended
        assert len(reads) == 1
        assert isinstance(await listens.ask(asks(4, 5.0)), p.Attached)  # in time: nothing is announced

        gate.clear()
        assert isinstance(await stays.ask(asks(5, 0.05, "0" * 32)), p.Attaching)
        gate.set()
        for client in (stays, listens):
            failed = await client.receive()
            assert isinstance(failed, p.AttachEnded)
            assert (failed.id, failed.sae, failed.code) == (0, "0" * 32, "wrong_sae")
        count = len(reads)
        again = await listens.ask(asks(6, 5.0, "0" * 32))
        assert isinstance(again, p.Failure)
        assert (again.code, len(reads)) == ("wrong_sae", count)
        for client in (stays, listens):
            client.writer.close()
