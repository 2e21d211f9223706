"""A person's end of a WebSocket, with nothing passed over in silence; and what tests of the live socket say."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import websockets

from microscope.params import EditPlan, plan_fingerprint
from tests.running import Lab, Person
from workbench.demo.portal import Portal

PROMPT = "the state of the union is strong and people ask congress to pass a budget for"
SIGNED_OUT, NOT_FOUND = 4401, 4404
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
        yield Talk(socket.raw)


# --- the live socket ----------------------------------------------------------------------------------


def edit_of(lab: Lab, index: int, strength: float, **values: Any) -> dict[str, Any]:
    feature = {"sae": lab.sae["fingerprint"], "index": index}
    return {"kind": "scale", "site": "resid_post.2", "feature": feature, "strength": strength, **values}


def plan_of(lab: Lab, index: int, strength: float, **values: Any) -> dict[str, Any]:
    return {"edits": [edit_of(lab, index, strength, **values)]}


def fingerprint(plan: dict[str, Any]) -> str:
    return plan_fingerprint(msgspec.convert(plan, type=EditPlan))


async def ready(socket: Talk) -> None:
    await socket.until(lambda message: message["type"] == "state" and message["state"] == "ready", 180)


@contextmanager
def held(lab: Lab) -> Iterator[None]:
    """The model's process does nothing meanwhile, and then finds everything that was sent to it at once."""
    resident = lab.site.resident(lab.model)
    resident.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        resident.send_signal(signal.SIGCONT)


async def answer(socket: Talk, rev: int, plan: dict[str, Any], **fields: Any) -> dict[str, Any]:
    await socket.send("apply", rev=rev, plan=plan, **fields)
    return await socket.until(lambda message: message["type"] == "result" and message["rev"] == rev)


async def written(socket: Talk, run: int) -> tuple[list[dict[str, Any]], str]:
    """The tokens of a run and why it ended."""
    tokens: list[dict[str, Any]] = []
    while True:
        message = await socket.next()
        assert message["type"] in ("generated", "generation_ended", "result", "queued"), message
        if message.get("run") != run:
            continue
        if message["type"] == "generation_ended":
            return tokens, message["reason"]
        tokens.append(message)


async def close_code(person: Person, path: str) -> tuple[int, list[dict[str, Any]]]:
    async with talk(person, path) as socket:
        return await socket.closed(), socket.waiting
