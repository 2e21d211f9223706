"""Fixtures of the tests of the live socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.running import Lab
from tests.ws.talking import PROMPT, Talk, ready, talk


@pytest.fixture
def cookie_of(world, client_of):
    def make(person: Any) -> str:
        client = client_of(person)
        return client.cookies["sessionid"].value if "sessionid" in client.cookies else ""

    return make


@pytest.fixture
async def live(lab: Lab) -> AsyncIterator[Talk]:
    """Alice's socket with a prompt open."""
    async with talk(lab.alice, lab.live) as socket:
        await ready(socket)
        await socket.send("open", prompt=PROMPT)
        await socket.expect("opened")
        yield socket


@pytest.fixture
async def firing(lab: Lab, live: Talk) -> int:
    """The feature that fires most on the prompt."""
    await live.send("read_features", sae=lab.sae["fingerprint"], top=1)
    feature = (await live.expect("features"))["features"][0]
    assert max(feature["values"]) > 0
    return int(feature["index"])
