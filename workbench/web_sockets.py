"""WebSockets of the web server: a peer that reads nothing, or asks faster than it is answered, takes bounded memory.

Daphne writes what the application sends into the connection's buffer, and puts what the peer sends into a queue, both
without limit. Here sending waits until the buffer is nearly empty, so that the application waits, too; meanwhile
nothing is read, and a peer that takes nothing for long is dropped.
"""

from __future__ import annotations

import asyncio
from typing import Any

from daphne import server
from daphne.ws_protocol import WebSocketFactory, WebSocketProtocol

STALL_SECONDS = 120.0  # the machine on the other side may be busy, or asleep for a moment
MAX_QUEUED = 1000  # frames that wait for the application
TOO_FAST = 1008


class BackpressureProtocol(WebSocketProtocol):  # type: ignore[misc]
    """One WebSocket, told by its transport when its buffer is full and when it is empty again."""

    muted: bool

    def connectionMade(self) -> None:
        """The HTTP request that became this hands its transport over, but remains what the transport calls."""
        super().connectionMade()
        self._free = asyncio.Event()
        self._free.set()
        self.transport.unregisterProducer()
        self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """The buffer is full."""
        self._free.clear()
        self.transport.pauseProducing()  # who takes no answers is asked nothing more

    def resumeProducing(self) -> None:
        """The buffer is empty."""
        self._free.set()
        self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is gone; nobody has to wait for it."""
        self._free.set()

    def connectionLost(self, reason: Any) -> None:
        """However it ended."""
        self._free.set()
        super().connectionLost(reason)

    async def drained(self) -> None:
        """Returns when more may be sent, or the connection was given up."""
        try:
            async with asyncio.timeout(STALL_SECONDS):
                await self._free.wait()
        except TimeoutError:
            self.transport.abortConnection()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A frame arrived."""
        if not self.muted and self.application_queue.qsize() >= MAX_QUEUED:
            self.sendClose(code=TOO_FAST)
            self.muted = True
            self.application_queue.put_nowait({"type": "websocket.disconnect", "code": TOO_FAST})
            return
        super().onMessage(payload, isBinary)


class BackpressureFactory(WebSocketFactory):  # type: ignore[misc]
    """Makes them."""

    protocol = BackpressureProtocol


class BackpressureServer(server.Server):  # type: ignore[misc]
    """Lets the application's ``send`` return when the peer has taken most of what was sent."""

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Send a message of the application."""
        await super().handle_reply(protocol, message)
        if isinstance(protocol, BackpressureProtocol):
            await protocol.drained()
