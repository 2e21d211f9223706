"""A client that speaks the resident worker's bare protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path

from microscope import protocol as p
from microscope.params import Edit, EditPlan, FeatureRef

PROMPT = "the state of union is strong and people ask congress"


class Client:
    """The bare protocol: every request has the next number, and is about session ``s`` unless another is named."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.number = 0

    @classmethod
    async def connect(cls, address: str) -> Client:
        client = cls(*await asyncio.open_unix_connection(address))
        reply = await client.ask(p.Hello())
        assert isinstance(reply, p.Welcome)
        return client

    def send(self, message: p.ResidentRequest, session: str = "s") -> int:
        """Send a request; its number."""
        return self.send_at_once((message, session))

    def send_at_once(self, *requests: tuple[p.ResidentRequest, str]) -> int:
        """Send requests, each with its session, in one piece; the number of the first."""
        first = self.number + 1
        frames = [
            p.encode_request(n, message, session) for n, (message, session) in enumerate(requests, first)
        ]
        self.writer.write(b"".join(frames))
        self.number += len(requests)
        return first

    async def frame(self) -> p.ReplyFrame:
        """The next reply, with the number of its request."""
        return p.decode_reply(await asyncio.wait_for(p.read_frame(self.reader), 20))

    async def answer(self, number: int) -> p.ResidentReply:
        """The reply to one request; what comes before it is passed over, and that it waits, too."""
        while (reply := await self.frame()).id != number or isinstance(reply.message, p.Queued):
            pass
        return reply.message

    async def receive(self) -> p.ResidentReply:
        return (await self.frame()).message

    async def ask(self, message: p.ResidentRequest, session: str = "s") -> p.ResidentReply:
        self.send(message, session)
        return await self.receive()

    async def attach(self, sae, folder: Path) -> None:
        reply = await self.ask(p.AttachSae(sae=sae.config.fingerprint, path=str(folder)))
        assert isinstance(reply, p.SaeAttached), reply


def add(sae, strength: float, index: int = 3) -> EditPlan:
    feature = FeatureRef(sae=sae.config.fingerprint, index=index)
    return EditPlan(edits=(Edit(kind="add", site=sae.config.site, feature=feature, strength=strength),))
