"""One peer of the resident server: its greeting, its sessions, and its replies in whatever order they are ready."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import msgspec

from microscope import protocol as p
from microscope.errors import MicroscopeError
from microscope.live.graphs import why_attended
from worker.resident import answers
from worker.resident.fair_queue import Superseded, Work
from worker.resident.graphs import Graphs
from worker.resident.running import Running

if TYPE_CHECKING:
    from worker.resident.server import ResidentServer

log = logging.getLogger(__name__)

# A peer that has said nothing by then, or has taken no answer for so long, is dropped.
HELLO_SECONDS, STALL_SECONDS = 20.0, 120.0
# Requests of one connection that may be under way before no more are read, and bytes of answers it may leave unread.
MAX_PENDING, MAX_UNSENT = 4096, 64 * 2**20


class Connection:
    """Reads requests until the peer leaves. The names of its sessions are its own, and they end with it."""

    def __init__(self, server: ResidentServer, number: int, writer: asyncio.StreamWriter) -> None:
        self._server, self._resident = server, server.resident
        self._number, self._writer = number, writer
        self._welcome = False
        self._sessions: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._generating: dict[str, Running] = {}
        self._graphs = Graphs(server, self._send)
        self._sending = asyncio.Lock()
        self._unsent = 0
        self._ended = False

    @property
    def pending(self) -> int:
        """Requests under way."""
        return len(self._tasks)

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Greet, then read requests until the peer leaves.

        Raises:
            ProtocolError: the peer does not speak the protocol.
            TimeoutError: it says nothing.
            ConnectionError, asyncio.IncompleteReadError: it left.
        """
        async with asyncio.timeout(HELLO_SECONDS):
            hello = p.decode_request(await p.read_frame(reader, p.MAX_HELLO_BYTES))
        if not isinstance(hello.message, p.Hello):
            raise p.ProtocolError("the first message must be hello")
        reply = self._server.welcome(hello.message)
        await self._send(hello.id, reply)
        if isinstance(reply, p.Failure):
            return
        self._welcome = True
        while True:
            while len(self._tasks) >= MAX_PENDING:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            body = await p.read_frame(reader)
            try:
                frame = p.decode_request(body)
            except p.ProtocolError as error:  # the frame was whole, so the stream is still in step
                await self._send(0, p.Failure(code="bad_message", message=str(error)))
                continue
            await self._take(frame.id, f"{self._number}/{frame.session}", frame)

    async def _take(self, number: int, session: str, frame: p.RequestFrame) -> None:
        """Queue what a request asks for in the order of arrival; only waiting for it is left to a task."""
        request = frame.message
        match request:
            case p.ReadStatus():
                await self._send(number, self._server.status())
            case p.Generate():
                running = self._begin(session, request)
                self._spawn(self._generate(number, session, frame.session, request, running))
            case p.ReadProvenance():
                await self._begin_graph(number, session, frame.session, request)
            case p.AttachSae() | p.AttachAdapter():
                self._spawn(self._attach(number, request))
            case _:
                self._spawn(self._answer(number, request, self._queue(session, frame)))

    def announce(self, message: p.Attached) -> None:
        """Tell the peer something it did not ask for, unless it has not been welcomed yet."""
        if self._welcome:
            self._spawn(self._send(0, message))

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self) -> None:
        """The peer is gone."""
        self._ended = True
        for session in self._sessions:
            self._server.end_session(session)
        for task in self._tasks:
            task.cancel()

    # --- sessions -------------------------------------------------------------------------------------

    def _queue(self, session: str, frame: p.RequestFrame) -> Work | None:
        """Queue the call that answers a request.

        Args:
            session: its name on this server; in ``frame`` is the name the peer gave it.
        """
        submit = self._server.submit
        match frame.message:
            case p.Open() as request:
                self._halt(session, "stopped")
                self._graphs.halt(session, "stopped")
                self._sessions.add(session)
                return submit(session, functools.partial(self._open, session, frame.session, request))
            case p.Apply() as request:
                return submit(
                    session, functools.partial(self._apply, session, frame.session, request), request.rev
                )
            case p.ReadFeatures() as request:
                return submit(
                    session, functools.partial(self._read_features, session, frame.session, request)
                )
            case p.ReadPositions() as request:
                return submit(
                    session, functools.partial(self._read_positions, session, frame.session, request)
                )
            case p.ReadAttended() as request:
                return submit(
                    session, functools.partial(self._read_attended, session, frame.session, request)
                )
            case p.StopGeneration():
                self._halt(session, "stopped")
                return submit(session, functools.partial(self._resident.stop_generation, session))
            case p.StopProvenance():
                self._graphs.halt(session, "stopped")
                return submit(session, functools.partial(self._graphs.stop, session))
            case p.CloseSession():
                self._halt(session, "stopped")
                self._graphs.halt(session, "stopped")
                self._sessions.discard(session)
                self._server.end_session(session)
        return None

    # These five run on the compute thread. They make the whole answer there, so that nothing is left to be read
    # from the device.

    def _open(self, session: str, name: str, request: p.Open) -> p.Opened:
        request.check()
        started = time.perf_counter()
        view, comparison = self._resident.open(session, request.prompt, top=request.top)
        milliseconds = 1000 * (time.perf_counter() - started)
        text, runner = self._resident.token_text, self._resident.runner
        return answers.opened(name, view, comparison, text, milliseconds, runner)

    def _apply(self, session: str, name: str, request: p.Apply) -> p.Computed:
        request.check()
        applied = self._resident.apply(session, request.plan, top=request.top, pinned=request.pinned)
        return answers.computed(name, request, applied, self._resident.token_text)

    def _read_features(self, session: str, name: str, request: p.ReadFeatures) -> p.Features:
        request.check()
        found = self._resident.read_features(session, request.sae, indices=request.indices, top=request.top)
        features = [p.FeatureValues(index=i, values=[round(v, 5) for v in values]) for i, values in found]
        left_out = self._resident.left_out(session, request.sae)
        return p.Features(session=name, sae=request.sae, features=features, left_out=left_out)

    def _read_positions(self, session: str, name: str, request: p.ReadPositions) -> p.PositionShifts:
        plan, kl = self._resident.read_positions(session, request.plan)
        return p.PositionShifts(session=name, plan=plan, kl=[round(value, 6) for value in kl])

    def _read_attended(self, session: str, name: str, request: p.ReadAttended) -> p.AttentionExplained:
        request.check()
        place = request.layer, request.head, request.query, request.key
        found = why_attended(self._resident, session, *place, request.saes, request.top)
        return p.AttentionExplained(session=name, attended=found)

    # --- continuations --------------------------------------------------------------------------------

    def _halt(self, session: str, reason: str) -> None:
        running = self._generating.pop(session, None)
        if running is not None and not running.over():
            running.ended = reason

    def _begin(self, session: str, request: p.Generate) -> Running:
        """Take over from a generation that may run; from here on it asks for no further token.

        The beginning is queued now: a plan that arrives next must be applied next.
        """
        self._halt(session, "replaced")
        begin = functools.partial(
            self._resident.start_generation,
            session,
            request.plan,
            seed=request.seed,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
        )
        running = self._generating[session] = Running(self._server.submit(session, begin))
        return running

    async def _generate(
        self, number: int, session: str, name: str, request: p.Generate, running: Running
    ) -> None:
        """Send one token per turn, so that others' turns come in between, until told to end."""
        next_tokens = functools.partial(self._resident.next_tokens, session)
        try:
            await running.start.done
            while not running.over():
                step = await self._server.submit(session, next_tokens).done
                if running.over():
                    break
                running.ended = step.ended
                await self._send(number, answers.generated(name, request.run, step))
            await self._send(number, p.GenerationEnded(run=request.run, reason=running.ended))
        except asyncio.CancelledError:
            # Either the session is gone, and what it waited for with it, or the connection is.
            await self._send(number, p.GenerationEnded(run=request.run, reason="stopped"))
        except Exception as error:
            running.ended = "failed"
            await self._send(number, answers.failure(error))
        finally:
            if self._generating.get(session) is running:
                del self._generating[session]

    # --- graphs ---------------------------------------------------------------------------------------

    async def _begin_graph(self, number: int, session: str, name: str, request: p.ReadProvenance) -> None:
        try:
            running = self._graphs.begin(session, request)
        except MicroscopeError as error:
            await self._send(number, answers.failure(error))
            return
        self._spawn(self._graphs.stream(number, session, name, request, running))

    # --- replies --------------------------------------------------------------------------------------

    async def _attach(self, number: int, request: p.AttachSae | p.AttachAdapter) -> None:
        reply: p.ResidentReply
        try:
            if isinstance(request, p.AttachSae):
                reply = await self._server.attach_sae(request)
            else:
                reply = await self._server.attach_adapter(request, f"{self._number}")
        except asyncio.CancelledError:
            return
        except Exception as error:
            reply = answers.failure(error)
        await self._send(number, reply)

    async def _answer(self, number: int, request: p.ResidentRequest, work: Work | None) -> None:
        reply: p.ResidentReply = p.Done()
        try:
            if work is not None:
                if isinstance(request, p.Open | p.Apply):
                    rev = request.rev if isinstance(request, p.Apply) else None
                    async for ahead in self._server.waiting(work):
                        await self._send(number, p.Queued(ahead=ahead, rev=rev))
                value = await work.done
                if isinstance(value, p.Computed):
                    value = _with_queue_time(value, 1000 * (time.perf_counter() - work.queued_at))
                if value is not None:
                    reply = value
        except Superseded:
            assert isinstance(request, p.Apply)
            reply = p.Superseded(rev=request.rev)
        except asyncio.CancelledError:
            if self._ended:
                return
            reply = answers.closed(request)
        except Exception as error:
            reply = answers.failure(error)
        await self._send(number, reply)

    async def _send(self, number: int, reply: p.ResidentReply) -> None:
        """Send an answer when those before it are gone; a peer that takes none for long is dropped."""
        frame = p.encode_reply(number, reply)
        if len(frame) > p.MAX_FRAME_BYTES:
            frame = p.encode_reply(number, answers.too_large(len(frame)))
        self._unsent += len(frame)
        try:
            if self._unsent > MAX_UNSENT:
                raise TimeoutError
            async with self._sending, asyncio.timeout(STALL_SECONDS):
                self._writer.write(frame)
                await self._writer.drain()
        except TimeoutError:
            log.warning("dropping a connection that leaves %d bytes unread", self._unsent)
            self._writer.transport.abort()
        except (ConnectionError, RuntimeError):
            pass  # the peer is gone; reading notices and ends the connection
        finally:
            self._unsent -= len(frame)


def _with_queue_time(computed: p.Computed, milliseconds: float) -> p.Computed:
    """The answer with the part of ``milliseconds``, counted from its request's arrival, that was not computing."""
    queued = max(0.0, milliseconds - computed.timings.compute)
    return msgspec.structs.replace(
        computed, timings=p.Timings(queued=queued, compute=computed.timings.compute)
    )
