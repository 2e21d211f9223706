"""The web server: daphne with a limit on request bodies, and manners that suit a process of a few lasting threads.

Daphne hands a request to the application when all of its body has arrived, and then keeps all of it in memory. So the
limit must be below the application: a body that is too large is refused when its headers say so, or, without a
length, as soon as too much of it is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
from typing import Any, ClassVar

import msgspec
from daphne import server
from daphne.cli import CommandLineInterface
from daphne.http_protocol import HTTPFactory, WebRequest

from workbench.web_sockets import BackpressureFactory, BackpressureServer

LINGER_SECONDS = 2.0
# A thread that requests share keeps its connection for so long.
CONNECTION_SECONDS = 600
_M_ARENA_MAX = -8  # of mallopt(3)


class LimitedRequest(WebRequest):  # type: ignore[misc]
    """A request whose body has at most ``limit`` bytes."""

    limit: ClassVar[int] = 0
    _refused = False
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """Called when the headers are there; without a length the body comes in chunks."""
        super().gotLength(length)
        if length is not None and length > self.limit:
            self._refuse()

    def handleContentChunk(self, data: bytes) -> None:
        """Called with a part of the body."""
        self._received += len(data)
        if self._received > self.limit:
            self._refuse()
        else:
            super().handleContentChunk(data)

    def _refuse(self) -> None:
        if self._refused:
            return
        self._refused = True
        body = _answer(self.limit)
        head = (
            "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        transport = self.channel.transport
        transport.write(head.encode() + body)
        # Closing at once would reset the connection under the sender, who then never reads the answer: what still
        # comes is thrown away for a moment.
        self.channel.dataReceived = lambda data: None
        asyncio.get_event_loop().call_later(LINGER_SECONDS, transport.loseConnection)


def _answer(limit: int) -> bytes:
    """The API's error shape; the application's own function for it would need the application."""
    error = {
        "code": "body_too_large",
        "detail": f"A request may have {limit} bytes.",
        "attr": None,
        "hint": "Send large files in pieces, as an upload.",
    }
    return msgspec.json.encode({"type": "client_error", "errors": [error]})


class LimitedFactory(HTTPFactory):  # type: ignore[misc]
    """Makes limited requests."""

    def buildProtocol(self, addr: Any) -> Any:
        """The protocol of a new connection."""
        protocol = super().buildProtocol(addr)
        protocol.requestFactory = LimitedRequest
        return protocol


def share_arenas() -> None:
    """Let all threads allocate from two arenas. By default glibc gives each its own, and every one keeps what it once held."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def main() -> None:
    """Run daphne with the command line's options."""
    share_arenas()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")
    from django.conf import settings

    settings.DATABASES["default"].update(CONN_MAX_AGE=CONNECTION_SECONDS, CONN_HEALTH_CHECKS=True)
    LimitedRequest.limit = settings.WORKBENCH_BODY_BYTES
    # The server takes them from its module and has no other place for them.
    server.HTTPFactory, server.WebSocketFactory = LimitedFactory, BackpressureFactory
    CommandLineInterface.server_class = BackpressureServer
    CommandLineInterface.entrypoint()


if __name__ == "__main__":
    main()
