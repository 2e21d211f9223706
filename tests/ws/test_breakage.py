"""Sockets of which something breaks: they say so, go on or close, and leave nothing behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.layers import get_channel_layer

from apps.core.metrics import REGISTRY
from apps.core.publish import user_group
from apps.live import sockets
from apps.live.consumers import JobsConsumer, LiveConsumer
from apps.live.models import LiveSeat
from apps.live.seats import renewer
from tests.api.routes import SOCKETS
from tests.ws.test_access import NOT_FOUND, Connection

pytestmark = pytest.mark.django_db(transaction=True)
PATIENCE = 60


class Broken(Exception):
    """What nobody foresaw."""


async def said(connection: Connection, type: str) -> dict[str, Any]:
    """The next message of a type."""
    while True:
        output = await connection.receive_output(timeout=PATIENCE)
        assert output["type"] == "websocket.send", output
        message: dict[str, Any] = json.loads(output["text"])
        if message["type"] == type:
            return message


async def opened(name: str, world: Any, cookie_of: Any) -> Connection:
    cookie = await sync_to_async(cookie_of)("owner")
    connection = Connection(SOCKETS[name].path(world), cookie=cookie)
    assert await connection.verdict() is None
    return connection


@pytest.mark.parametrize("name", SOCKETS)
async def test_a_request_that_breaks_is_answered_and_the_socket_goes_on(
    name, world, cookie_of, monkeypatch
) -> None:
    async def breaks(self, message):
        raise Broken

    for consumer in (JobsConsumer, LiveConsumer):
        monkeypatch.setattr(consumer, "handle", breaks)
    connection = await opened(name, world, cookie_of)
    message = {"type": "watch", "job": "0" * 32} if name == "ws-jobs" else {"type": "stop_generation"}
    await connection.send_to(text_data=json.dumps(message))
    assert (await said(connection, "failure"))["code"] == "crashed"
    await connection.send_to(text_data='{"type": "ping"}')
    await said(connection, "pong")
    await connection.disconnect()


@pytest.mark.parametrize("number", ["9223372036854775808", "18446744073709551616", "-1" + "0" * 400])
async def test_numbers_that_nobody_can_hold_are_no_message(number, world, cookie_of) -> None:
    jobs, live = [await opened(name, world, cookie_of) for name in ("ws-jobs", "ws-live")]
    frames = {
        jobs: ['{"type":"watch","job":"%s","after":%s}' % ("0" * 32, number)],  # noqa: UP031
        live: [
            text.replace("N", number)
            for text in (
                '{"type":"open","prompt":"a","top":N}',
                '{"type":"apply","rev":N,"plan":{}}',
                '{"type":"apply","rev":1,"plan":{},"top":N}',
                '{"type":"apply","rev":1,"plan":{},"pinned":[N]}',
                '{"type":"generate","run":N,"plan":{}}',
                '{"type":"generate","run":1,"plan":{},"seed":N}',
                '{"type":"generate","run":1,"plan":{},"max_tokens":N}',
                '{"type":"read_features","sae":"a","indices":[N]}',
                '{"type":"read_features","sae":"a","top":N}',
            )
        ],
    }
    for connection, texts in frames.items():
        for text in texts:
            await connection.send_to(text_data=text)
            assert (await said(connection, "failure"))["code"] == "bad_message", text
        await connection.disconnect()


async def test_an_event_that_breaks_closes_the_socket_and_leaves_nothing(
    world, cookie_of, monkeypatch
) -> None:
    async def breaks(self, event):
        raise Broken

    monkeypatch.setattr(LiveConsumer, "resident_changed", breaks, raising=True)
    before = REGISTRY.get_sample_value("workbench_live_sessions")
    connection = await opened("ws-live", world, cookie_of)
    assert await LiveSeat.objects.acount() == 1
    layer = get_channel_layer()
    (group,) = [name for name in layer.groups if name.startswith("resident.")]
    await layer.group_send(group, {"type": "resident.changed"})
    assert await connection.end() == sockets.FAILED
    await connection.wait(timeout=PATIENCE)
    assert await LiveSeat.objects.acount() == 0
    assert not renewer.held
    assert not layer.groups
    assert REGISTRY.get_sample_value("workbench_live_sessions") == before


async def test_what_breaks_while_letting_in_leaves_nothing(world, cookie_of, monkeypatch) -> None:
    async def breaks(self, group):
        raise Broken

    monkeypatch.setattr(LiveConsumer, "join", breaks)
    cookie = await sync_to_async(cookie_of)("owner")
    connection = Connection(SOCKETS["ws-live"].path(world), cookie=cookie)
    assert await connection.verdict() == sockets.FAILED
    await connection.wait(timeout=PATIENCE)
    assert await LiveSeat.objects.acount() == 0


@pytest.mark.parametrize("told", [True, False])
async def test_access_is_looked_at_again_after_a_look_that_failed(
    told, world, cookie_of, monkeypatch
) -> None:
    """Whether somebody said that a role changed, or it is only time to look."""
    monkeypatch.setattr(sockets, "RECHECK_SECONDS", 600 if told else 0.2)
    monkeypatch.setattr(sockets, "RETRY_SECONDS", 0.1)
    looked = 0

    async def check_access(self):
        nonlocal looked
        looked += 1
        if looked < 3:
            raise Broken
        return None if looked == 3 else NOT_FOUND

    connection = await opened("ws-jobs", world, cookie_of)
    monkeypatch.setattr(JobsConsumer, "check_access", check_access)
    if told:
        group = user_group(world.people["owner"].pk)
        await get_channel_layer().group_send(group, {"type": "access.changed"})
        async with asyncio.timeout(PATIENCE):
            while looked < 3:
                await asyncio.sleep(0.01)
        # The third look found nothing wrong; what is said after it is looked at, too.
        await get_channel_layer().group_send(group, {"type": "access.changed"})
    assert await connection.end() == NOT_FOUND
