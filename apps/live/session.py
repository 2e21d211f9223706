"""A live session: the last prompt and plan of one socket, kept alive over deaths of the resident worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID

import msgspec

from apps.core.errors import MicroscopeError, Refused
from apps.core.ids import uuid7
from apps.live.resident_client import ClientPool, ResidentClient, ResidentLost, checked
from apps.live.resident_link import ResidentLink, Say, Spawn
from apps.live.services import Paths, Resident
from apps.live.session_files import SessionFiles
from apps.live.session_graphs import SessionGraphs
from microscope import protocol as p
from microscope.params import EditPlan, validate_plan

MAX_WAITING = 64


class LiveSession:
    """What one socket does with one model.

    The toggle path (:meth:`apply`) does no database work and never waits inside: it writes the request
    to the worker's stream and leaves waiting for the answer to a task.

    Args:
        say: sends a message to the browser.
        spawn: runs a task that ends with the socket.
        look: reads the state of the worker from the database.
        read_paths: reads the SAEs and adapters the session may use from the database.
    """

    def __init__(
        self,
        *,
        model_id: UUID,
        pool: ClientPool,
        say: Say,
        spawn: Spawn,
        look: Callable[[], Awaitable[Resident]],
        read_paths: Callable[[], Awaitable[Paths]],
    ) -> None:
        self._say, self._spawn = say, spawn
        self._link = ResidentLink(
            model_id=model_id, pool=pool, say=say, spawn=spawn, look=look, listener=self
        )
        self._files = SessionFiles(read_paths)
        self._run: int | None = None  # the generation that is wanted
        self._session = ""  # its name on the worker
        self._prompt: p.Open | None = None
        self._newest: p.Apply | None = None  # asked for last
        self._last: p.Apply | None = None  # accepted last: what is applied again after a loss
        self._opening = asyncio.Lock()
        self._opener: asyncio.Task[None] | None = None
        self._generation = 0
        self._waiting = 0
        self.graphs = SessionGraphs(
            files=self._files,
            say=say,
            ready=self._ready,
            current=lambda: self._session,
            ask=self._ask,
            say_failure=self._say_failure,
        )

    # --- the worker -----------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something about the worker changed."""
        self._link.look_soon()

    async def show_state(self) -> None:
        """Tell the browser how the worker is, if that is new."""
        await self._link.show_state()

    def worker_connected(self) -> None:
        """The session has to be opened on this connection."""
        self._session = ""

    def worker_ready(self) -> None:
        """Go on where the last worker was lost."""
        if self._prompt is not None and not self._session:
            self._spawn(self._open(reopened=True))

    def worker_lost(self) -> None:
        """What the worker held is gone."""
        self._session = ""

    def sae_attached(self, attached: p.Attached) -> None:
        """Pass it on, if the SAE is of this project."""
        self._spawn(self._tell_attached(attached))

    async def _tell_attached(self, attached: p.Attached) -> None:
        with contextlib.suppress(Refused):  # of another project: the worker is shared
            await self._files.sae(attached.sae)
            await self._say(attached)

    def end(self) -> None:
        """The socket is gone: end the session, keep the connection for others."""
        self._link.leave()
        self._close_session()

    def _close_session(self) -> None:
        if self._session:
            _close(self._link.client, self._session)
        self._session = ""

    # --- prompt and plan ------------------------------------------------------------------------------

    def open(self, request: p.Open) -> None:
        """Start over with a prompt.

        Raises:
            MicroscopeError: ``prompt_too_long`` or ``bad_top``.
        """
        request.check()
        self._prompt, self._newest, self._last = request, None, None
        self._generation += 1
        if self._opener is not None:
            self._opener.cancel()  # its prompt is wanted no more
        self._opener = self._spawn(self._open(reopened=False))

    async def _open(self, *, reopened: bool) -> None:
        generation = self._generation
        async with self._opening:
            if generation != self._generation or self._prompt is None or (reopened and self._session):
                return  # a newer prompt took over, or the session was opened meanwhile
            try:
                if self._link.client is None:
                    resident = await self._link.show_state()
                    if not resident.address and not reopened:
                        shown = resident.state
                        await self._say(p.Failure(code=shown.code, message=shown.message, hint=shown.hint))
                client = self._link.client
                if client is None:
                    return
                await self._open_on(client, self._prompt, reopened)
            except ResidentLost:
                return  # the loss has been told; the session is opened again when the worker is back
            except MicroscopeError as error:
                await self._say(failure(error))
                return
        last = self._last
        if reopened and last is not None:
            self.apply(last)

    async def _open_on(self, client: ResidentClient, prompt: p.Open, reopened: bool) -> None:
        self._close_session()
        if not reopened:
            await self._files.refresh()
        session = uuid7().hex
        try:
            opened = await client.request(prompt, p.Opened, session, self._pass_on_queued())
        except asyncio.CancelledError:
            # The page was left, or asks for another prompt. The connection is shared and goes on, so the worker
            # would keep the session.
            _close(client, session)
            raise
        self._session = session
        await self._say(msgspec.structs.replace(opened, reopened=reopened))

    def apply(self, request: p.Apply) -> None:
        """Send a plan on its way; the answer comes by itself.

        Raises:
            MicroscopeError: the plan is impossible, there is no session, or too much is waiting.
        """
        arrived = time.perf_counter()
        request.check()
        client, session = self._ready(request.plan)
        self._newest = request
        if self._files.are_attached(client, request.plan):
            self._post(client, session, request, arrived)
        else:
            self._ask(self._attach_then_apply(client, request, arrived))

    def _post(self, client: ResidentClient, session: str, request: p.Apply, arrived: float) -> None:
        self._files.check_features(request.plan)
        future = client.post(request, session, self._pass_on_queued())
        self._last = request
        self._ask(self._answer(future, arrived, request.rev))

    async def _attach_then_apply(self, client: ResidentClient, request: p.Apply, arrived: float) -> None:
        try:
            await self._files.attach(client, request.plan)
            if self._newest is not request:
                await self._say(p.Superseded(rev=request.rev))
            elif self._session:
                self._post(client, self._session, request, arrived)
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say(failure(error, request.rev))

    async def _answer(self, future: asyncio.Future[p.ResidentReply], arrived: float, rev: int) -> None:
        try:
            reply = await future
            if isinstance(reply, p.Superseded):
                await self._say(reply)
                return
            computed = checked(reply, p.Computed)
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say(failure(error, rev))
            return
        took = round((time.perf_counter() - arrived) * 1000, 3)
        await self._say(p.Result.of(computed, server_ms=took))

    # --- readings and continuations -------------------------------------------------------------------

    def read_positions(self, request: p.ReadPositions) -> None:
        """Ask how far a plan moves every position; the answer comes by itself.

        Raises:
            MicroscopeError: the plan is impossible, there is no session, or too much is waiting.
        """
        client, session = self._ready(request.plan)
        self._ask(self._read(client, session, request, p.PositionShifts))

    def read_features(self, request: p.ReadFeatures) -> None:
        """Ask for activations on the prompt; the answer comes by itself.

        Raises:
            MicroscopeError: there is no session, or too much was asked for.
        """
        request.check()
        client, session = self._ready()
        self._ask(self._read(client, session, request, p.Features))

    async def _read(
        self,
        client: ResidentClient,
        session: str,
        request: p.ReadPositions | p.ReadFeatures | p.ReadAttended,
        expect: type[p.Message],
    ) -> None:
        try:
            if isinstance(request, p.ReadPositions):
                await self._files.attach(client, request.plan)
            else:
                for name in request.saes if isinstance(request, p.ReadAttended) else (request.sae,):
                    await self._files.attach_sae(client, name)
            await self._say(await client.request(request, expect, session))
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say_failure(session, error)

    def read_attended(self, request: p.ReadAttended) -> None:
        """Ask why a head attends somewhere; the answer comes by itself.

        Raises:
            MicroscopeError: there is no session, or too much was asked for.
        """
        request.check()
        client, session = self._ready()
        self._ask(self._read(client, session, request, p.AttentionExplained))

    def generate(self, request: p.Generate) -> None:
        """Continue the prompt; tokens come by themselves, and then the end.

        Raises:
            MicroscopeError: the plan is impossible, or there is no session.
        """
        client, session = self._ready(request.plan)
        self._run = request.run
        tokens = None
        if self._files.are_attached(client, request.plan):
            self._files.check_features(request.plan)
            tokens = client.generate(request, session)
        self._ask(self._generate(client, session, request, self._newest, tokens))

    async def _generate(
        self,
        client: ResidentClient,
        session: str,
        request: p.Generate,
        newest: p.Apply | None,
        tokens: AsyncIterator[p.Generated | p.GenerationEnded] | None,
    ) -> None:
        """Pass tokens on; ``newest`` is the plan that was asked for last when this was asked for."""
        reason, plan = "failed", request.plan
        try:
            while tokens is None:
                await self._files.attach(client, plan)
                if self._run != request.run or self._session != session:
                    reason = "replaced"
                    return
                if self._newest is newest:
                    tokens = client.generate(msgspec.structs.replace(request, plan=plan), session)
                elif self._newest is not None:  # changed while something was attached
                    newest, plan = self._newest, self._newest.plan
            async for answer in tokens:
                if isinstance(answer, p.GenerationEnded):
                    reason = answer.reason
                    return
                await self._say(answer)
        except ResidentLost:
            reason = "lost"
        except MicroscopeError as error:
            await self._say_failure(session, error)
        finally:
            await self._say(p.GenerationEnded(run=request.run, reason=reason))

    def stop_generation(self) -> None:
        """End the generation; fine if there is none.

        Raises:
            Refused: there is no session.
        """
        client, session = self._require_session()
        self._run = None
        with contextlib.suppress(ResidentLost):
            client.post(p.StopGeneration(), session)

    # --- helpers --------------------------------------------------------------------------------------

    def _require_session(self) -> tuple[ResidentClient, str]:
        client = self._link.client
        if client is None:
            raise Refused("model_not_loaded", "The model is not in memory.", "Load it, or wait a moment.")
        if not self._session:
            raise Refused("no_session", "No prompt is open.", "Send open first.")
        return client, self._session

    def _ready(self, plan: EditPlan | None = None) -> tuple[ResidentClient, str]:
        """The connection and the session's name, if something may be asked now."""
        client, session = self._require_session()
        if plan is not None:
            validate_plan(plan, n_layers=client.info.n_layers)
        if self._waiting >= MAX_WAITING:
            raise Refused(
                "too_many_requests", f"{self._waiting} requests are waiting.", "Send fewer at a time."
            )
        return client, session

    def _ask(self, question: Coroutine[Any, Any, None]) -> None:
        """Wait beside the socket until something is answered and the browser has taken the answer."""
        self._waiting += 1
        self._spawn(question).add_done_callback(self._answered)

    def _answered(self, _task: object) -> None:
        self._waiting -= 1

    def _pass_on_queued(self) -> Callable[[p.Queued], None]:
        """What tells the browser how many turns come first."""
        saying: asyncio.Task[None] | None = None

        def tell(queued: p.Queued) -> None:
            nonlocal saying
            if saying is None or saying.done():  # else the browser has not even taken the last one
                saying = self._spawn(self._say_queued(queued))

        return tell

    async def _say_queued(self, queued: p.Queued) -> None:
        await self._say(queued)

    async def _say_failure(self, session: str, error: MicroscopeError) -> None:
        """Unless it is about a prompt that is no longer open."""
        if session == self._session:
            await self._say(failure(error))


def failure(error: MicroscopeError, rev: int | None = None) -> p.Failure:
    """An error as it is sent."""
    return p.Failure(code=error.code, message=error.message, hint=error.hint, rev=rev)


def _close(client: ResidentClient | None, session: str) -> None:
    """Have the worker forget a session."""
    if client is not None and not client.closed:
        client.post(p.CloseSession(), session)
