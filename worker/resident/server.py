"""Serves one resident model over a stream socket."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psutil

from microscope import protocol as p
from microscope.live import ResidentModel
from microscope.models import dtype_name
from microscope.models.running import running_of
from worker.resident import answers
from worker.resident.attachments import Attachments
from worker.resident.connection import Connection
from worker.resident.fair_queue import FairQueue, Work

log = logging.getLogger(__name__)

# A request that waits longer than this is told how many turns come first, and again whenever that changes.
QUEUED_NOTICE_SECONDS = 0.25


class Holdings(NamedTuple):
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
        self.resident, self._token = resident, token
        self.queue = FairQueue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        # Files are read beside the compute thread, so that nobody's turn waits for a disk.
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
        self._process = psutil.Process()
        self._holdings = self._look()
        self._numbers = itertools.count(1)
        self.connections: set[Connection] = set()
        self._attachments = Attachments(self._read_and_attach, self._announce)
        self._compute: asyncio.Task[None] | None = None
        self._asked_at = time.monotonic()

    @property
    def model_info(self) -> p.ModelInfo:
        """What is loaded."""
        loaded = self.resident.loaded
        return p.ModelInfo(
            reference=loaded.reference,
            fingerprint=loaded.fingerprint,
            family=loaded.family.name,
            dtype=dtype_name(loaded.dtype),
            n_layers=loaded.n_layers,
            d_model=loaded.d_model,
            vocab_size=loaded.vocab_size,
            max_context=self.resident.max_context,
            parameters=loaded.parameters,
            running=running_of(loaded, self.resident.runner),
        )

    async def listen(self, address: str) -> tuple[asyncio.Server, str]:
        """Start serving ``unix:/path`` or ``tcp:host:port``, any free port when that is 0; returns the address, too."""
        self._compute = asyncio.create_task(self._run_compute())
        kind, _, target = address.partition(":")
        if kind == "unix":
            if os.path.exists(target):
                os.unlink(target)
            server = await asyncio.start_unix_server(self._serve, target)
            os.chmod(target, 0o600)
            return server, address
        host, _, port = target.rpartition(":")
        server = await asyncio.start_server(self._serve, host, int(port))
        return server, f"tcp:{host}:{server.sockets[0].getsockname()[1]}"

    async def _run_compute(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            work = await self.queue.next()
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
            self._holdings = self._look()

    def _look(self) -> Holdings:
        """What the model holds; only the compute thread may look, for it is the one that changes it."""
        resident = self.resident
        sessions, attached = resident.sessions, resident.attached
        return Holdings(len(sessions), sessions.nbytes, tuple(attached.saes), tuple(attached.adapters))

    # --- one connection -------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self, next(self._numbers), writer)
        self.connections.add(connection)
        try:
            await connection.run(reader)
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            pass
        except p.ProtocolError as error:
            # Framing is lost, so nothing more can be understood on this stream.
            log.warning("closing a connection: %s", error)
        finally:
            self.connections.discard(connection)
            connection.end()
            writer.close()

    def submit(self, session: str, call: Callable[[], Any], rev: int | None = None) -> Work:
        """Queue a call on the resident model."""
        self._asked_at = time.monotonic()
        work = Work(call, asyncio.get_running_loop().create_future(), rev)
        self.queue.put(session, work)
        return work

    async def waiting(self, work: Work) -> AsyncIterator[int]:
        """How many turns come before a piece of work, whenever that is news to somebody who waits."""
        told = 0
        while not work.done.done():
            await asyncio.wait([work.done], timeout=QUEUED_NOTICE_SECONDS)
            ahead = self.queue.ahead(work)
            if not work.done.done() and ahead != told:
                told = ahead
                yield ahead

    def end_session(self, session: str) -> None:
        """Forget a session and what it waits for."""
        self.queue.forget(session)
        self.submit(session, lambda: self.resident.close(session))

    def welcome(self, hello: p.Hello) -> p.Welcome | p.Failure:
        """Check version and secret."""
        if hello.protocol != p.PROTOCOL_VERSION:
            return p.Failure(
                code="protocol_mismatch",
                message=f"The portal speaks protocol {hello.protocol}, this worker {p.PROTOCOL_VERSION}.",
                hint="Run the same version of both.",
            )
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            return p.Failure(code="not_authorised", message="The token is wrong.")
        return p.Welcome(protocol=p.PROTOCOL_VERSION, model=self.model_info)

    def status(self) -> p.Status:
        """Health, at once: what the compute thread wrote down, whatever it does now."""
        held = self._holdings
        return p.Status(
            sessions=held.sessions,
            cache_bytes=held.cache_bytes,
            rss_bytes=self._process.memory_info().rss,
            queued=len(self.queue),
            saes=list(held.saes),
            adapters=list(held.adapters),
            idle_seconds=time.monotonic() - self._asked_at,
        )

    async def attach_sae(self, request: p.AttachSae) -> p.SaeAttached | p.Attaching:
        """Attach an SAE, or say that it takes longer than the request waits."""
        return await self._attachments.attach(request)

    async def _read_and_attach(self, name: str, path: str) -> p.SaeAttached:
        """Read an SAE beside the compute thread, then take it over when it is its turn."""
        loop, attached = asyncio.get_running_loop(), self.resident.attached
        if name not in self._holdings.saes:
            await self.submit("attach", lambda: attached.make_room_for(path)).done
        sae = await loop.run_in_executor(self._reader, lambda: attached.read_sae(path, expect=name))
        kept = await self.submit("attach", lambda: attached.attach_sae(path, expect=name, read=sae)).done
        return p.SaeAttached(sae=name, site=kept.config.site, n_latents=kept.config.n_latents)

    def _announce(self, sae: str, error: Exception | None) -> None:
        """Tell all connections that an SAE a request was told to come back for is there, or why not."""
        attached = p.Attached(sae=sae)
        if error is not None:
            told = answers.failure(error)
            attached = p.Attached(sae=sae, code=told.code, message=told.message, hint=told.hint)
        for connection in self.connections:
            connection.announce(attached)

    async def attach_adapter(self, request: p.AttachAdapter, queue: str) -> p.AdapterAttached:
        """Read an adapter, then take it over when it is this queue's turn."""
        loop, attached = asyncio.get_running_loop(), self.resident.attached
        path, name = request.path, request.adapter
        if name not in self._holdings.adapters:
            await self.submit(queue, lambda: attached.make_room_for(path)).done
        adapter = await loop.run_in_executor(self._reader, lambda: attached.read_adapter(path, expect=name))
        kept = await self.submit(queue, lambda: attached.attach_adapter(path, expect=name, read=adapter)).done
        rank = max(len(pair.a) for pair in kept.factors.values())
        return p.AdapterAttached(adapter=kept.fingerprint, modules=len(kept.factors), rank=rank)
