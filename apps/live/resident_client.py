"""The portal's end of the connection to a resident worker: requests as futures, death as an exception."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from typing import TypeVar
from uuid import UUID

import structlog

from apps.core.errors import MicroscopeError
from microscope import protocol as p

log = structlog.get_logger(__name__)

R = TypeVar("R", bound=p.Message)
E = TypeVar("E", bound=p.Message)
# Answers after which more come to the same request.
_PIECES = (p.Generated, p.GraphBegun, p.GraphProgress)
OnQueued = Callable[[p.Queued], None]
CONNECT_SECONDS = 10.0  # the machine may be busy


class ResidentLost(Exception):
    """The worker is gone, or cannot be reached."""


class ResidentError(MicroscopeError):
    """The worker refused a request."""


class ResidentClient:
    """One connection. Many sessions share it; requests may be answered in any order."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[p.ResidentReply]] = {}
        self._on_loss: set[Callable[[], None]] = set()
        self._on_attached: set[Callable[[p.Attached], None]] = set()
        self._reading: asyncio.Task[None] | None = None
        self.closed = False
        self._on_queued: dict[int, OnQueued] = {}
        self._streams: dict[int, asyncio.Queue[p.ResidentReply | ResidentLost]] = {}
        self.attached: set[str] = set()
        self.attached_adapters: set[str] = set()
        self.info: p.ModelInfo

    @classmethod
    async def connect(cls, address: str) -> ResidentClient:
        """Connect to ``unix:/path`` or ``tcp:host:port`` and exchange greetings.

        Raises:
            ResidentLost: nobody answers there.
            ResidentError: the worker refuses us.
        """
        kind, _, target = address.partition(":")
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if kind == "unix":
                    reader, writer = await asyncio.open_unix_connection(target)
                else:
                    host, _, port = target.rpartition(":")
                    reader, writer = await asyncio.open_connection(host, int(port))
        except (OSError, ValueError, TimeoutError) as error:
            raise ResidentLost(str(error)) from error
        client = cls(reader, writer)
        client._reading = asyncio.create_task(client._read())
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                hello = p.Hello(token=os.environ.get("WORKBENCH_RESIDENT_TOKEN", ""))
                client.info = (await client.request(hello, p.Welcome)).model
        except TimeoutError as error:
            client.close()
            raise ResidentLost("the worker does not answer") from error
        except BaseException:
            client.close()
            raise
        return client

    @property
    def pending(self) -> int:
        """Requests and texts that somebody still waits for."""
        return len(self._waiting.keys() | self._on_queued.keys() | self._streams.keys())

    def post(
        self, request: p.ResidentRequest, session: str = "", on_queued: OnQueued | None = None
    ) -> asyncio.Future[p.ResidentReply]:
        """Send now and return the future of the reply. Requests arrive in the order they were posted.

        Args:
            session: the name of the session it is about.
            on_queued: called while the request waits for the turns of others.

        Raises:
            ResidentLost: the connection is closed.
        """
        number = self._send(request, session)
        future: asyncio.Future[p.ResidentReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        if on_queued is not None:
            self._on_queued[number] = on_queued
        # However it ends, also when the caller was cancelled.
        future.add_done_callback(lambda _: self._forget(number))
        return future

    def _send(self, request: p.ResidentRequest, session: str) -> int:
        if self.closed:
            raise ResidentLost("the connection is closed")
        number = next(self._ids)
        self._writer.write(p.encode_request(number, request, session))
        return number

    def _forget(self, number: int) -> None:
        self._waiting.pop(number, None)
        self._on_queued.pop(number, None)

    async def request(
        self,
        request: p.ResidentRequest,
        expect: type[R],
        session: str = "",
        on_queued: OnQueued | None = None,
    ) -> R:
        """Send and wait for the reply.

        Raises:
            ResidentLost: the worker died.
            ResidentError: the worker refused.
        """
        return checked(await self.post(request, session, on_queued), expect)

    async def attach(self, sae: str, path: str) -> None:
        """Make sure the worker has the SAE."""
        if sae not in self.attached:
            await self.request(p.AttachSae(sae=sae, path=path), p.SaeAttached)
            self.attached.add(sae)

    async def attach_adapter(self, adapter: str, path: str) -> None:
        """Make sure the worker has the adapter."""
        if adapter not in self.attached_adapters:
            await self.request(p.AttachAdapter(adapter=adapter, path=path), p.AdapterAttached)
            self.attached_adapters.add(adapter)

    def generate(self, request: p.Generate, session: str) -> AsyncIterator[p.Generated | p.GenerationEnded]:
        """Send now, so that a plan sent later is applied later; yields every token, and at last the end.

        Raises:
            ResidentLost: the worker died.
            ResidentError: the worker refused, or gave up.
        """
        return self._stream(request, session, p.GenerationEnded, p.Generated)

    def explain(
        self, request: p.ReadProvenance, session: str
    ) -> AsyncIterator[p.GraphBegun | p.GraphProgress | p.GraphEnded]:
        """Send now; yields the first picture of a graph, every update, and at last the end.

        Raises:
            ResidentLost: the worker died.
            ResidentError: the worker refused, or gave up.
        """
        return self._stream(request, session, p.GraphEnded, p.GraphBegun, p.GraphProgress)

    def _stream(
        self, request: p.ResidentRequest, session: str, end: type[E], *pieces: type[R]
    ) -> AsyncIterator[R | E]:
        number = self._send(request, session)
        answers: asyncio.Queue[p.ResidentReply | ResidentLost] = asyncio.Queue()
        self._streams[number] = answers
        return self._pieces(number, answers, end, pieces)

    async def _pieces(
        self,
        number: int,
        answers: asyncio.Queue[p.ResidentReply | ResidentLost],
        end: type[E],
        pieces: tuple[type[R], ...],
    ) -> AsyncIterator[R | E]:
        try:
            while True:
                reply = await answers.get()
                if isinstance(reply, ResidentLost):
                    raise reply
                if isinstance(reply, end):
                    yield reply
                    return
                expect = type(reply) if isinstance(reply, pieces) else pieces[0]
                yield checked(reply, expect)
        finally:
            self._streams.pop(number, None)

    def on_attached(self, call: Callable[[p.Attached], None]) -> Callable[[], None]:
        """Call something whenever an SAE that took long to read is there, or failed; returns how to take that back."""
        self._on_attached.add(call)
        return lambda: self._on_attached.discard(call)

    def on_loss(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call something once when the connection ends; returns how to take that back."""
        self._on_loss.add(call)
        return lambda: self._on_loss.discard(call)

    def close(self) -> None:
        """End the connection; the worker ends its sessions."""
        if self._reading is not None:
            self._reading.cancel()
        self._end("closed")

    async def _read(self) -> None:
        reason = "the connection ended"
        try:
            while True:
                frame = p.decode_reply(await p.read_frame(self._reader))
                number, reply = frame.id, frame.message
                if isinstance(reply, p.Queued):
                    if (on_queued := self._on_queued.get(number)) is not None:
                        on_queued(reply)
                    continue
                if isinstance(reply, p.Attached):
                    for call in tuple(self._on_attached):
                        call(reply)
                    continue
                stream = self._streams.get(number)
                if stream is not None:
                    stream.put_nowait(reply)
                    if not isinstance(reply, _PIECES):  # the end, even if nobody iterates any more
                        del self._streams[number]
                    continue
                future = self._waiting.get(number)
                if future is not None and not future.done():
                    future.set_result(reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except p.ProtocolError as error:
            reason = str(error)
            log.error("resident_protocol_error", error=reason)
        finally:
            self._end(reason)

    def _end(self, reason: str) -> None:
        if self.closed:
            return
        self.closed = True
        with contextlib.suppress(Exception):
            self._writer.close()
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(ResidentLost(reason))
                future.exception()  # marks it as retrieved: nobody may be waiting any more
        self._waiting.clear()
        for stream in self._streams.values():
            stream.put_nowait(ResidentLost(reason))
        calls, self._on_loss = self._on_loss, set()
        for call in calls:
            call()


def checked(reply: p.Message, expect: type[R]) -> R:
    """The reply as the expected type.

    Raises:
        ResidentError: it is a failure, or something else.
    """
    if isinstance(reply, p.Failure):
        raise ResidentError(reply.code, reply.message, reply.hint)
    if not isinstance(reply, expect):
        raise ResidentError("protocol_mismatch", f"The worker answered {type(reply).__name__}.")
    return reply


class ClientPool:
    """One connection per model and event loop, shared by all sockets, replaced when it has died."""

    def __init__(self) -> None:
        self._clients: dict[tuple[int, UUID], tuple[str, ResidentClient]] = {}
        self._locks: dict[tuple[int, UUID], asyncio.Lock] = {}

    async def get(self, model_id: UUID, address: str) -> ResidentClient:
        """The connection to the worker of a model.

        Raises:
            ResidentLost, ResidentError: there is none to be had.
        """
        key = id(asyncio.get_running_loop()), model_id
        async with self._locks.setdefault(key, asyncio.Lock()):
            known = self._clients.get(key)
            if known is not None and known[0] == address and not known[1].closed:
                return known[1]
            if known is not None:
                known[1].close()
            client = await ResidentClient.connect(address)
            self._clients[key] = address, client
            return client


pool = ClientPool()
