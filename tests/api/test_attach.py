"""An SAE that takes long to read: the request answers, and the live socket tells the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from apps.live import services
from apps.live.models import ResidentWorker
from apps.live.resident_client import ClientPool, ResidentClient
from apps.live.services import Paths, Resident, SaePath
from apps.live.session import LiveSession
from microscope import protocol as p
from microscope.live import ResidentModel
from microscope.models import load_model
from microscope.sae import save_sae
from tests.factories import ResidentWorkerFactory
from tests.live_rig import random_sae
from tests.running import wait_for
from tests.tiny_models import make_model
from worker.resident.server import ResidentServer


class Worker:
    """A resident worker on a thread of its own, which reads no SAE before it may."""

    def __init__(self, resident: ResidentModel, place: Path) -> None:
        self.may_read = threading.Event()
        attached = resident.attached
        self._read, attached.read_sae = attached.read_sae, self._slowly  # type: ignore[method-assign]
        self.server, self.address = ResidentServer(resident), f"unix:{place}"
        self.clients: list[ResidentClient] = []
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.server.listen(self.address), self.loop).result(10)

    def _slowly(self, path, *, expect=""):
        assert self.may_read.wait(30)
        return self._read(path, expect=expect)

    def stop(self) -> None:
        self.may_read.set()
        asyncio.run_coroutine_threadsafe(self._end(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    async def _end(self) -> None:
        for client in self.clients:
            client.close()
        async with asyncio.timeout(10):
            while self.server.connections:
                await asyncio.sleep(0.01)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def worker(world, tmp_path, monkeypatch) -> Iterator[Worker]:
    """Holds the world's model, and can read its SAE."""
    monkeypatch.setattr(services, "ATTACH_SECONDS", 0.1)
    loaded = load_model(str(make_model("llama", tmp_path / "model")), dtype="float32", device="cpu")
    sae = random_sae(loaded.d_model, 2, seed=1)
    save_sae(sae, world.sae.artifact.checkout())
    world.sae.fingerprint = sae.content_fingerprint()
    world.sae.save()
    made = Worker(ResidentModel(loaded), tmp_path / "r.sock")
    info = msgspec.to_builtins(made.server.model_info)
    ResidentWorkerFactory(
        model=world.model, state=ResidentWorker.State.READY, address=made.address, info=info
    )
    yield made
    made.stop()


class Listener:
    """A live session in another window, on the worker's loop."""

    def __init__(self, worker: Worker, places: Paths) -> None:
        self.heard: list[p.Message] = []
        self._paths, self._worker, self._tasks = places, worker, set()
        asyncio.run_coroutine_threadsafe(self._start(), worker.loop).result(10)

    async def _start(self) -> None:
        pool, model = ClientPool(), uuid4()
        self.session = LiveSession(
            model_id=model,
            pool=pool,
            say=self._say,
            spawn=lambda work: self._tasks.add(asyncio.ensure_future(work)),
            look=self._look,
            read_paths=self._read_paths,
        )
        await self.session.show_state()
        self._worker.clients.append(await pool.get(model, self._worker.address))

    async def _say(self, message: p.Message) -> None:
        self.heard.append(message)

    async def _look(self) -> Resident:
        return Resident(self._worker.address, p.ResidentState(state="ready"))

    async def _read_paths(self) -> Paths:
        return self._paths

    @property
    def attached(self) -> list[p.Message]:
        return [message for message in self.heard if isinstance(message, p.Attached)]


def test_a_large_sae_is_attached_after_the_answer(world, client_of, worker) -> None:
    sae, viewer = world.sae, client_of("viewer")
    folder = str(sae.artifact.checkout())
    here = Listener(worker, Paths({sae.fingerprint: SaePath(folder, sae.width, sae.name)}, {}))
    elsewhere = Listener(worker, Paths({}, {}))  # another project's, on the same worker
    for _ in range(2):
        answer = viewer.post(f"/api/v1/saes/{sae.pk}/attach")
        assert answer.status_code == 202
        assert answer.json() == {
            "state": "attaching",
            "sae": sae.fingerprint,
            "site": "resid_post.2",
            "n_latents": sae.width,
        }
    assert here.attached == []
    worker.may_read.set()
    wait_for(lambda: here.attached, 10, "for the announcement")
    assert here.attached == [p.Attached(sae=sae.fingerprint)]
    assert elsewhere.attached == []
    answer = viewer.post(f"/api/v1/saes/{sae.pk}/attach")
    assert (answer.status_code, answer.json()["state"]) == (200, "attached")
    assert len(here.attached) == 1


def test_a_large_sae_that_is_damaged_is_told_and_told_again(world, client_of, worker) -> None:
    sae, viewer = world.sae, client_of("viewer")
    folder = sae.artifact.checkout()
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"\0" * 100)
    here = Listener(worker, Paths({sae.fingerprint: SaePath(str(folder), sae.width, sae.name)}, {}))
    assert viewer.post(f"/api/v1/saes/{sae.pk}/attach").status_code == 202
    worker.may_read.set()
    wait_for(lambda: here.attached, 10, "for the announcement")
    [told] = here.attached
    assert told.code == "bad_sae"
    answer = viewer.post(f"/api/v1/saes/{sae.pk}/attach")
    assert (answer.status_code, answer.json()["errors"][0]["code"]) == (422, "bad_sae")
