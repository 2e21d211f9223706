"""A client that speaks the resident worker's bare protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

from microscope.params import Edit, EditPlan, FeatureRef
from worker import protocol as p

PROMPT = "the state of union is strong and people ask congress"


class Client:
    """The bare protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.number = 0

    @classmethod
    async def connect(cls, address: str) -> Client:
        client = cls(*await asyncio.open_unix_connection(address))
        reply = await client.ask(p.Hello(id=0))
        assert isinstance(reply, p.Welcome)
        return client

    def send(self, message: p.Request) -> None:
        self.writer.write(p.encode(message))

    async def receive(self) -> p.AnyReply:
        return p.decode_reply(await asyncio.wait_for(p.read_frame(self.reader), 20))

    async def ask(self, message: p.Request) -> p.AnyReply:
        self.send(message)
        return await self.receive()

    async def attach(self, sae, folder: Path) -> None:
        reply = await self.ask(p.AttachSae(id=1, sae=sae.config.fingerprint, path=str(folder)))
        assert isinstance(reply, p.Attached), reply


def add(sae, strength: float, index: int = 3) -> EditPlan:
    feature = FeatureRef(sae=sae.config.fingerprint, index=index)
    return EditPlan(edits=(Edit(kind="add", site=sae.config.site, feature=feature, strength=strength),))
