"""A person's end of a WebSocket, with nothing passed over in silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import websockets

from workbench.demo.portal import Portal

PATIENCE = 60.0


class Talk:
    """An open socket; messages are kept until somebody asks for their type."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.waiting: list[dict[str, Any]] = []

    async def send(self, type: str, **fields: Any) -> None:
        await self.raw.send(json.dumps({"type": type, **fields}))

    async def next(self, seconds: float = PATIENCE) -> dict[str, Any]:
        """The next message, whatever it is."""
        if self.waiting:
            return self.waiting.pop(0)
        async with asyncio.timeout(seconds):
            message: dict[str, Any] = json.loads(await self.raw.recv())
        return message

    async def expect(self, type: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """The next message of the type; a failure in between fails the test unless it is asked for."""
        return await self.until(lambda message: message["type"] == type, seconds)

    async def until(
        self, wanted: Callable[[dict[str, Any]], bool], seconds: float = PATIENCE
    ) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                message = await self.next(seconds)
                if wanted(message):
                    return message
                assert message["type"] != "failure", message

    async def works(self) -> None:
        """A ping is still answered."""
        await self.send("ping")
        assert (await self.next())["type"] == "pong"

    async def closed(self, seconds: float = PATIENCE) -> int:
        """The code with which the portal closes the socket; messages before that are kept."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    self.waiting.append(json.loads(await self.raw.recv()))
                except websockets.ConnectionClosed as end:
                    return int(end.rcvd.code if end.rcvd else 1006)


@asynccontextmanager
async def talk(person: Portal, path: str) -> AsyncIterator[Talk]:
    """Connect with the person's session."""
    async with person.socket(path) as socket:
        yield Talk(socket._raw)
