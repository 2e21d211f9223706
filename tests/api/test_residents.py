"""Which host holds a model, and when it need not be in memory any more."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from uuid import uuid4

import psutil
import pytest
from asgiref.sync import sync_to_async
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.live import services
from apps.live.models import ResidentWorker
from apps.live.resident_client import ResidentClient
from microscope import protocol as p
from worker import residents

State = ResidentWorker.State


def test_one_host_at_a_time_holds_a_model(world) -> None:
    model = world.model.pk
    assert services.claim_resident(model_id=model, host="one")
    assert services.set_resident(model_id=model, state=State.STARTING, host="one")
    assert services.claim_resident(model_id=model, host="one"), "again by its own agent"
    assert not services.claim_resident(model_id=model, host="two")
    assert not services.set_resident(model_id=model, state=State.FAILED, host="two")
    assert not services.record_heartbeat(model_id=model, host="two", memory_bytes=1)
    row = ResidentWorker.objects.get(model_id=model)
    assert (row.host, row.state) == ("one", State.STARTING)
    long_ago = timezone.now() - services.CLAIM_LASTS - timedelta(seconds=1)
    ResidentWorker.objects.update(heartbeat_at=long_ago)
    services.keep_claims(model_ids=[model], host="two")
    services.keep_claims(model_ids=[model], host="one")
    assert not services.claim_resident(model_id=model, host="two"), "it lives"
    ResidentWorker.objects.update(heartbeat_at=long_ago)
    assert services.claim_resident(model_id=model, host="two"), "it has not been heard of"
    assert not services.set_resident(model_id=model, state=State.READY, host="one", address="unix:x")
    assert services.set_resident(model_id=model, state=State.READY, host="two", address="tcp:two:1")
    services.set_resident(model_id=model, state=State.STOPPED, host="two", address="")
    assert services.claim_resident(model_id=model, host="one"), "nobody holds it"


def test_how_a_model_is_run_shows_while_it_is_in_memory(world, editor) -> None:
    model = world.model
    sites = [{"kind": "resid_mid", "blocks": [], "reason": "attention and MLP run in parallel"}]
    running = {"path": "general", "reason": "no declaration", "from_start": True, "sites": sites}
    services.claim_resident(model_id=model.pk, host="one")
    ready = {"state": State.READY, "address": "unix:x", "host": "one"}
    services.set_resident(model_id=model.pk, **ready, info={"running": running})

    def shown() -> object:
        return editor.get(f"/api/v1/models/{model.pk}").json()["resident"]["running"]

    assert shown() == running
    services.set_resident(model_id=model.pk, **ready, info={"reference": "an older worker says less"})
    assert shown() is None
    services.set_resident(
        model_id=model.pk, state=State.STOPPED, host="one", address="", info={"running": running}
    )
    assert shown() is None


def test_another_host_may_try_what_one_could_not_load(world) -> None:
    model = world.model.pk
    assert services.claim_resident(model_id=model, host="small")
    why = {"error_code": "model_too_big", "error_message": "needs 14.2 GB, and 9.1 GB are free"}
    services.set_resident(model_id=model, state=State.FAILED, host="small", **why)
    shown = services.resident_of(world.model).state
    assert (shown.state, shown.code) == (State.FAILED, "model_too_big")
    assert "needs 14.2 GB, and 9.1 GB are free" in shown.message
    assert services.claim_resident(model_id=model, host="large")


def test_a_model_that_is_gone_is_claimed_by_nobody(world) -> None:
    assert not services.claim_resident(model_id=uuid4(), host="one")


@pytest.mark.servers
@pytest.mark.timeout(300)
@pytest.mark.django_db(transaction=True)
async def test_two_agents_share_a_model_between_hosts(world, settings, tmp_path, monkeypatch) -> None:
    """Real processes over TCP: the first agent loads, the second leaves it alone, kill -9 is told and mended; when
    nobody asks any more, the model leaves memory.
    """
    from tests.tiny_models import make_model  # needs torch, which the rest of these tests do without

    monkeypatch.setenv("WORKBENCH_RESIDENT_TOKEN", "sesame")
    settings.WORKBENCH_RESIDENT_HOST = "127.0.0.1"
    settings.WORKBENCH_RUN_DIR = settings.WORKBENCH_LOG_DIR = tmp_path
    settings.WORKBENCH_RESIDENT_IDLE_MINUTES = 10
    monkeypatch.setattr(residents, "PING_SECONDS", 1.0)
    model = world.model
    model.reference, model.revision, model.dtype = str(make_model("llama", tmp_path / "tiny")), "", "float32"
    model.wanted_loaded = True
    await model.asave()
    one, two = residents.Residents("one"), residents.Residents("two")

    async def until(*states: str) -> ResidentWorker:
        while True:
            await one.tick(), await two.tick()
            row = await ResidentWorker.objects.filter(model_id=model.pk, state__in=states).afirst()
            if row is not None:
                return row
            await asyncio.sleep(0.05)

    try:
        row = await until(State.READY)
        assert (row.host, row.address[:14]) == ("one", "tcp:127.0.0.1:")
        assert (one.models, two.models) == ({model.pk}, set())
        client = await ResidentClient.connect(row.address)
        assert (await client.request(p.ReadStatus(), p.Status)).sessions == 0
        lost = asyncio.Event()
        client.on_loss(lost.set)
        os.kill(row.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            await lost.wait()
        told = await until(State.LOST, State.STARTING)
        assert told.state == State.STARTING or "SIGKILL" in told.error_message
        again = await until(State.READY)
        assert again.pid != row.pid
        # The first host falls silent: the second takes over, and what the first still says counts for nothing.
        await one.stop_all()
        one.tick = two.tick  # type: ignore[method-assign]
        assert (await until(State.READY)).host == "two"
        # Nobody asks for long: the agent sees it in the heartbeat, and stopping tells people why.
        assert not await AuditEvent.objects.filter(action="model.unloaded_idle").aexists()
        settings.WORKBENCH_RESIDENT_IDLE_MINUTES = 0.001
        assert (await until(State.STOPPED)).address == ""
        await model.arefresh_from_db()
        assert not model.wanted_loaded
        assert await AuditEvent.objects.filter(action="model.unloaded_idle").acount() == 1
        shown = (await sync_to_async(services.resident_of)(model)).state
        assert (shown.state, shown.code) == (State.STOPPED, "model_idle")
        assert "0.001 min" in shown.message
        assert shown.hint
    finally:
        await one.stop_all()
        await two.stop_all()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("on_the_hub", "host"), [(True, ""), (False, ""), (False, "127.0.0.1")])
async def test_what_a_resident_is_told(world, settings, monkeypatch, tmp_path, on_the_hub, host) -> None:
    """A real process: a token only where a model may have to be fetched, a secret only where others may call."""
    secrets = {
        "WORKBENCH_SECRET_KEY": "s",
        "DATABASE_URL": "postgresql://me:secret@db/x",
        "GITHUB_TOKEN": "g",
    }
    for name, value in {**secrets, "HF_TOKEN": "hub", "WORKBENCH_RESIDENT_TOKEN": "sesame"}.items():
        monkeypatch.setenv(name, value)
    settings.WORKBENCH_RESIDENT_HOST = host
    settings.WORKBENCH_RUN_DIR = settings.WORKBENCH_LOG_DIR = tmp_path
    model = world.model
    model.reference, model.revision = "some/model" if on_the_hub else str(tmp_path), ""
    model.wanted_loaded = True
    await model.asave()
    agent = residents.Residents("h")

    def started() -> list[psutil.Process]:
        children = psutil.Process().children()
        return [child for child in children if "worker.resident" in " ".join(child.cmdline())]

    try:
        await agent.tick()
        async with asyncio.timeout(30):
            while not started():
                await asyncio.sleep(0.01)
        told = started()[0].environ()
    finally:
        await agent.stop_all()
    assert secrets.keys() & told.keys() == set()
    assert ("HF_TOKEN" in told) is on_the_hub
    assert ("WORKBENCH_RESIDENT_TOKEN" in told) is bool(host)
    assert told["PATH"] == os.environ["PATH"]
