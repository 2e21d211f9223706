"""Serves one resident model over a stream socket."""

from __future__ import annotations

import asyncio
import functools
import hmac
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import psutil

from microscope.errors import MicroscopeError
from microscope.live import Applied, Comparison, Piece, PromptView, ResidentModel
from microscope.models import dtype_name
from microscope.params import EditPlan
from worker import protocol as p
from worker.resident.attachments import Attachments
from worker.resident.turns import Overtaken, Turns, Work

log = logging.getLogger(__name__)

# A peer that has said nothing by then, or has taken no answer for so long, is dropped.
_HELLO_SECONDS, _STALL_SECONDS = 20.0, 120.0
# Requests of one connection that may be under way before no more are read, and bytes of answers it may leave unread.
_MAX_PENDING, _MAX_UNSENT = 4096, 64 * 2**20
# Who waits longer than this is told how many come first, and again whenever that changes.
_PATIENCE_SECONDS = 0.25


class Vitals(NamedTuple):
    """What the model holds, as the compute thread saw it last."""

    sessions: int
    cache_bytes: int
    saes: tuple[str, ...]
    adapters: tuple[str, ...]


class ResidentServer:
    """Accepts connections, answers health at once, and passes everything else to one compute thread.

    Sessions belong to the connection that opened them: their names cannot collide with another
    connection's, and they end with it.
    """

    def __init__(self, resident: ResidentModel, *, token: str = "") -> None:
        self._resident, self._token = resident, token
        self._turns = Turns()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        # Files are read beside the compute thread, so that nobody's turn waits for a disk.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._process = psutil.Process()
        self._vitals = self._look()
        self._connections = itertools.count(1)
        self._peers: set[_Connection] = set()
        self._attachments = Attachments(self._read_and_attach, self._announce)
        self._compute: asyncio.Task[None] | None = None
        self._asked_at = time.monotonic()

    @property
    def model_info(self) -> p.ModelInfo:
        """What is loaded."""
        loaded = self._resident.loaded
        return p.ModelInfo(
            reference=loaded.reference,
            fingerprint=loaded.fingerprint,
            family=loaded.family.name,
            dtype=dtype_name(loaded.dtype),
            n_layers=loaded.n_layers,
            d_model=loaded.d_model,
            vocab_size=loaded.vocab_size,
            max_context=self._resident.max_context,
            parameters=loaded.parameters,
        )

    async def listen(self, address: str) -> tuple[asyncio.Server, str]:
        """Start serving ``unix:/path`` or ``tcp:host:port``, any free port when that is 0; returns the address, too."""
        self._compute = asyncio.create_task(self._run_compute())
        kind, _, place = address.partition(":")
        if kind == "unix":
            if os.path.exists(place):
                os.unlink(place)
            server = await asyncio.start_unix_server(self._serve, place)
            os.chmod(place, 0o600)
            return server, address
        host, _, port = place.rpartition(":")
        server = await asyncio.start_server(self._serve, host, int(port))
        return server, f"tcp:{host}:{server.sockets[0].getsockname()[1]}"

    async def _run_compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            work = await self._turns.next()
            if work.done.done():
                continue
            try:
                result = await loop.run_in_executor(self._thread, self._perform, work.call)
            except Exception as error:
                if not work.done.done():
                    work.done.set_exception(error)
            else:
                if not work.done.done():
                    work.done.set_result(result)

    def _perform(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        finally:
            self._vitals = self._look()

    def _look(self) -> Vitals:
        """What the model holds; only the compute thread may look, for it is the one that changes it."""
        resident = self._resident
        return Vitals(resident.sessions, resident.cache_bytes, resident.saes, resident.adapters)

    # --- one connection -------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, next(self._connections), writer)
        self._peers.add(connection)
        try:
            await connection.run(reader)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        except p.ProtocolError as error:
            # Framing is lost, so nothing more can be understood on this stream.
            log.warning("closing a connection: %s", error)
        finally:
            self._peers.discard(connection)
            connection.end()
            writer.close()

    def submit(self, session: str, call: Callable[[], Any], rev: int | None = None) -> Work:
        """Queue a call on the resident model."""
        self._asked_at = time.monotonic()
        work = Work(call, asyncio.get_running_loop().create_future(), rev)
        self._turns.put(session, work)
        return work

    async def waiting(self, work: Work) -> AsyncIterator[int]:
        """How many turns come before a piece of work, whenever that is news to somebody who waits."""
        told = 0
        while not work.done.done():
            await asyncio.wait([work.done], timeout=_PATIENCE_SECONDS)
            ahead = self._turns.ahead(work)
            if not work.done.done() and ahead != told:
                told = ahead
                yield ahead

    def end_session(self, session: str) -> None:
        """Forget a session and what it waits for."""
        self._turns.forget(session)
        self.submit(session, lambda: self._resident.close(session))

    def welcome(self, hello: p.Hello) -> p.Reply:
        """Check version and secret."""
        if hello.protocol != p.PROTOCOL_VERSION:
            return p.Failure(
                id=hello.id,
                code="protocol_mismatch",
                message=f"The portal speaks protocol {hello.protocol}, this worker {p.PROTOCOL_VERSION}.",
                hint="Run the same version of both.",
            )
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            return p.Failure(id=hello.id, code="not_authorised", message="The token is wrong.")
        return p.Welcome(id=hello.id, protocol=p.PROTOCOL_VERSION, model=self.model_info)

    def status(self, request: p.Ping) -> p.Status:
        """Health, at once: what the compute thread wrote down, whatever it does now."""
        vitals = self._vitals
        return p.Status(
            id=request.id,
            sessions=vitals.sessions,
            cache_bytes=vitals.cache_bytes,
            rss_bytes=self._process.memory_info().rss,
            queued=len(self._turns),
            saes=list(vitals.saes),
            adapters=list(vitals.adapters),
            idle_seconds=time.monotonic() - self._asked_at,
        )

    async def attach_sae(self, request: p.AttachSae) -> p.Reply:
        """Attach an SAE, or say that it takes longer than the request's patience."""
        return await self._attachments.attach(request)

    async def _read_and_attach(self, name: str, path: str) -> p.Attached:
        """Read an SAE beside the compute thread, then take it over when it is its turn."""
        loop, resident = asyncio.get_running_loop(), self._resident
        if name not in self._vitals.saes:
            await self.submit("attach", lambda: resident.make_room_for(path)).done
        sae = await loop.run_in_executor(self._reader, lambda: resident.read_sae(path, expect=name))
        kept = await self.submit("attach", lambda: resident.attach(path, expect=name, read=sae)).done
        return p.Attached(id=0, sae=name, site=kept.config.site, n_latents=kept.config.n_latents)

    def _announce(self, sae: str, error: Exception | None) -> None:
        """Tell everybody that an attachment somebody was told to wait for has ended."""
        ended = p.AttachEnded(id=0, sae=sae)
        if error is not None:
            failure = _failure(0, error)
            ended = p.AttachEnded(
                id=0, sae=sae, code=failure.code, message=failure.message, hint=failure.hint
            )
        for peer in self._peers:
            peer.announce(ended)

    async def attach_adapter(self, request: p.AttachAdapter, queue: str) -> p.Reply:
        """Read an adapter, then take it over when it is this queue's turn."""
        loop, resident, number = asyncio.get_running_loop(), self._resident, request.id
        path, name = request.path, request.adapter
        if name not in self._vitals.adapters:
            await self.submit(queue, lambda: resident.make_room_for(path)).done
        adapter = await loop.run_in_executor(self._reader, lambda: resident.read_adapter(path, expect=name))
        kept = await self.submit(queue, lambda: resident.attach_adapter(path, expect=name, read=adapter)).done
        rank = max(len(pair.a) for pair in kept.factors.values())
        return p.AdapterAttached(id=number, adapter=kept.fingerprint, modules=len(kept.factors), rank=rank)

    # --- calls that run on the compute thread ---------------------------------------------------------

    def open(self, request: p.OpenSession, session: str) -> p.Reply:
        started = time.perf_counter()
        view, comparison = self._resident.open(session, request.prompt, top=request.top)
        return p.Opened(
            id=request.id,
            session=request.session,
            prompt=_prompt_tokens(view),
            next=self._shifts(comparison),
            entropy=comparison.entropy_base,
            milliseconds=1000 * (time.perf_counter() - started),
        )

    def apply(self, request: p.Apply, session: str) -> p.Result:
        """The whole answer, so that nothing is left to be read from the device; who sends it knows how long it waited."""
        applied = self._resident.apply(session, request.plan, top=request.top, pinned=request.pinned)
        comparison = applied.comparison
        return p.Result(
            id=request.id,
            session=request.session,
            rev=request.rev,
            tokens=self._shifts(comparison),
            kl=comparison.kl,
            entropy_base=comparison.entropy_base,
            entropy_patched=comparison.entropy_patched,
            receipt=_receipt(request.plan, applied),
            timings=p.Timings(queued=0.0, compute=applied.milliseconds),
        )

    def read_features(self, request: p.ReadFeatures, session: str) -> p.Reply:
        found = self._resident.read_features(session, request.sae, indices=request.indices, top=request.top)
        features = [p.FeatureValues(index=i, values=[round(v, 5) for v in values]) for i, values in found]
        left_out = self._resident.left_out(session, request.sae)
        return p.Features(
            id=request.id,
            session=request.session,
            sae=request.sae,
            features=features,
            left_out=left_out,
        )

    def read_positions(self, request: p.ReadPositions, session: str) -> p.Reply:
        plan, kl = self._resident.read_positions(session, request.plan)
        rounded = [round(value, 6) for value in kl]
        return p.PositionShifts(id=request.id, session=request.session, plan=plan, kl=rounded)

    def begin_generation(self, request: p.Generate, session: str) -> Generating:
        """Queue the start of a generation."""
        begin = functools.partial(
            self._resident.start_generation,
            session,
            request.plan,
            seed=request.seed,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
        )
        return Generating(self.submit(session, begin))

    async def generate(
        self, request: p.Generate, session: str, running: Generating
    ) -> AsyncIterator[p.Generated]:
        """One token per turn, so that others' turns come in between; ends when told to."""
        resident = self._resident
        await running.begun.done
        while not running.over():
            step = await self.submit(session, functools.partial(resident.next_tokens, session)).done
            if running.over():
                return
            running.ended = step.ended
            yield p.Generated(
                id=request.id,
                session=request.session,
                number=step.number,
                plan=step.plan,
                base=_piece(step.base),
                patched=_piece(step.patched),
            )

    def stop(self, session: str) -> Work:
        """Forget the session's generation."""
        return self.submit(session, functools.partial(self._resident.stop_generation, session))

    def _shifts(self, comparison: Comparison) -> list[p.TokenShift]:
        text = self._resident.token_text
        return [
            p.TokenShift(token=s.token, text=text(s.token), base=s.base, patched=s.patched)
            for s in comparison.shifts
        ]


@dataclass
class Generating:
    """A generation under way, from its queued beginning; ``ended`` says why it is no longer."""

    begun: Work
    ended: str = ""

    def over(self) -> bool:
        """Whether no further token is wanted."""
        return self.ended != ""


class _Connection:
    """One peer: its greeting, its sessions, and its replies in whatever order they are ready."""

    def __init__(self, server: ResidentServer, number: int, writer: asyncio.StreamWriter) -> None:
        self._server, self._number, self._writer = server, number, writer
        self._welcome = False
        self._sessions: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._generating: dict[str, Generating] = {}
        self._sending = asyncio.Lock()
        self._unsent = 0
        self._ended = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Greet, then read requests until the peer leaves."""
        async with asyncio.timeout(_HELLO_SECONDS):
            hello = p.decode_request(await p.read_frame(reader, p.MAX_HELLO_BYTES))
        if not isinstance(hello, p.Hello):
            raise p.ProtocolError("the first message must be hello")
        reply = self._server.welcome(hello)
        await self._send(reply)
        if isinstance(reply, p.Failure):
            return
        self._welcome = True
        while True:
            while len(self._tasks) >= _MAX_PENDING:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            frame = await p.read_frame(reader)
            try:
                request = p.decode_request(frame)
            except p.ProtocolError as error:  # the frame was whole, so the stream is still in step
                await self._send(p.Failure(id=0, code="bad_message", message=str(error)))
                continue
            if isinstance(request, p.Ping):
                await self._send(self._server.status(request))
                continue
            if isinstance(request, p.Generate):
                self._spawn(self._generate(request, self._begin(request)))
                continue
            if isinstance(request, p.AttachSae | p.AttachAdapter):
                self._spawn(self._attach(request))
                continue
            # The call is queued here, in the order of arrival; only waiting for it is left to a task.
            self._spawn(self._answer(request, self._queue(request)))

    def announce(self, message: p.Reply) -> None:
        """Tell the peer something it did not ask for, unless it has not been welcomed yet."""
        if self._welcome:
            self._spawn(self._send(message))

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

    def _queue(self, request: p.AnyRequest) -> Work | None:
        server = self._server
        match request:
            case p.OpenSession():
                name = self._name(request.session)
                self._halt(name, "stopped")
                self._sessions.add(name)
                return server.submit(name, lambda: server.open(request, name))
            case p.Apply():
                name = self._name(request.session)
                return server.submit(name, lambda: server.apply(request, name), request.rev)
            case p.ReadFeatures():
                name = self._name(request.session)
                return server.submit(name, lambda: server.read_features(request, name))
            case p.ReadPositions():
                name = self._name(request.session)
                return server.submit(name, lambda: server.read_positions(request, name))
            case p.StopGeneration():
                name = self._name(request.session)
                self._halt(name, "stopped")
                return server.stop(name)
            case p.CloseSession():
                name = self._name(request.session)
                self._halt(name, "stopped")
                self._sessions.discard(name)
                server.end_session(name)
        return None

    def _halt(self, name: str, reason: str) -> None:
        running = self._generating.pop(name, None)
        if running is not None and not running.over():
            running.ended = reason

    def _begin(self, request: p.Generate) -> Generating:
        """Take over from a generation that may run; from here on it asks for no further token.

        The beginning is queued now: a plan that arrives next must be applied next.
        """
        name = self._name(request.session)
        self._halt(name, "replaced")
        running = self._generating[name] = self._server.begin_generation(request, name)
        return running

    async def _generate(self, request: p.Generate, running: Generating) -> None:
        name = self._name(request.session)
        try:
            async for token in self._server.generate(request, name, running):
                await self._send(token)
            ended = p.GenerationEnded(id=request.id, session=request.session, reason=running.ended)
            await self._send(ended)
        except asyncio.CancelledError:
            # Either the session is gone, and what it waited for with it, or the connection is.
            await self._send(p.GenerationEnded(id=request.id, session=request.session, reason="stopped"))
        except Exception as error:
            running.ended = "failed"
            await self._send(_failure(request.id, error))
        finally:
            if self._generating.get(name) is running:
                del self._generating[name]

    async def _attach(self, request: p.AttachSae | p.AttachAdapter) -> None:
        try:
            if isinstance(request, p.AttachSae):
                reply = await self._server.attach_sae(request)
            else:
                reply = await self._server.attach_adapter(request, f"{self._number}")
        except asyncio.CancelledError:
            return
        except Exception as error:
            reply = _failure(request.id, error)
        await self._send(reply)

    async def _answer(self, request: p.AnyRequest, work: Work | None) -> None:
        reply: p.Reply = p.Done(id=request.id)
        try:
            if work is not None:
                if isinstance(request, p.OpenSession | p.Apply):
                    async for ahead in self._server.waiting(work):
                        await self._send(p.Queued(id=request.id, ahead=ahead))
                value = await work.done
                if isinstance(value, p.Result):
                    waited = 1000 * (time.perf_counter() - work.queued_at) - value.timings.compute
                    value.timings = msgspec.structs.replace(value.timings, queued=max(0.0, waited))
                if value is not None:
                    reply = value
        except Overtaken:
            assert isinstance(request, p.Apply)
            reply = p.Superseded(id=request.id, session=request.session, rev=request.rev)
        except asyncio.CancelledError:
            if self._ended:
                return
            reply = _closed(request)
        except Exception as error:
            reply = _failure(request.id, error)
        await self._send(reply)

    async def _send(self, reply: p.Reply) -> None:
        """Send an answer when those before it are gone; a peer that takes none for long is dropped."""
        frame = p.encode(reply)
        if len(frame) > p.MAX_FRAME_BYTES:
            frame = p.encode(_too_large(reply.id, len(frame)))
        self._unsent += len(frame)
        try:
            if self._unsent > _MAX_UNSENT:
                raise TimeoutError
            async with self._sending, asyncio.timeout(_STALL_SECONDS):
                self._writer.write(frame)
                await self._writer.drain()
        except TimeoutError:
            log.warning("dropping a connection that leaves %d bytes unread", self._unsent)
            self._writer.transport.abort()
        except (ConnectionError, RuntimeError):
            pass  # the peer is gone; reading notices and ends the connection
        finally:
            self._unsent -= len(frame)

    def _name(self, session: str) -> str:
        return f"{self._number}/{session}"


def _prompt_tokens(view: PromptView) -> list[p.PromptToken]:
    columns = zip(view.tokens, view.texts, view.special, view.sink, strict=True)
    return [
        p.PromptToken(token=t, text=text, special=special, sink=sink) for t, text, special, sink in columns
    ]


def _piece(piece: Piece | None) -> p.GeneratedPiece | None:
    if piece is None:
        return None
    return p.GeneratedPiece(token=piece.token, text=piece.text, probability=piece.probability)


def _closed(request: p.AnyRequest) -> p.Reply:
    """What is said to a request whose session was closed before its turn came."""
    if isinstance(request, p.Apply):
        return p.Superseded(id=request.id, session=request.session, rev=request.rev)
    return p.Failure(
        id=request.id, code="no_session", message="The session was closed.", hint="Open it again."
    )


def _too_large(request: int, size: int) -> p.Failure:
    return p.Failure(
        id=request,
        code="answer_too_large",
        message=f"The answer has {size / 2**20:.0f} MiB; {p.MAX_FRAME_BYTES / 2**20:.0f} are the limit.",
        hint="Ask for less at a time.",
    )


def _failure(request: int, error: Exception) -> p.Failure:
    if isinstance(error, MicroscopeError):
        return p.Failure(id=request, code=error.code, message=error.message, hint=error.hint)
    log.error("a request failed", exc_info=error)
    return p.Failure(
        id=request,
        code="crashed",
        message=f"{type(error).__name__}: {error}",
        hint="This is a defect; the resident worker's log has the details.",
    )


def _receipt(plan: EditPlan, applied: Applied) -> p.Receipt:
    """What each edit did; edits that were muted or cannot change anything are no-ops too."""
    effects = {effect.edit: effect for effect in applied.outcome.effects}
    edits = []
    for number, edit in enumerate(plan.edits):
        effect = effects.get(edit)
        positions = list(effect.positions) if effect else []
        size = effect.max_delta if effect else 0.0
        edits.append(p.EditReceipt(edit=number, noop=not positions, positions=positions, max_delta=size))
    return p.Receipt(
        plan=applied.fingerprint,
        edits=edits,
        baseline=applied.baseline,
        reused=applied.reused,
        first_layer=applied.outcome.first_layer,
        first_position=applied.outcome.first_position,
    )
