"""A live session: the last prompt and plan of one socket, kept alive over deaths of the resident worker."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from uuid import UUID

import structlog

from apps.core.errors import MicroscopeError, Refused
from apps.core.ids import uuid7
from apps.live import messages as m
from apps.live.resident_client import ClientPool, ResidentClient, ResidentError, ResidentLost, checked
from apps.live.services import Places, Resident, SaePlace
from microscope.params import EditPlan, validate_plan
from worker import protocol as p

log = structlog.get_logger(__name__)

MAX_WAITING = 64
LOOK_SECONDS = 1.0
MAX_TOP = 200
LOST = m.ResidentState(
    state="lost",
    code="resident_lost",
    message="The process that held the model has died.",
    hint="It is being started again; the session continues by itself.",
)

Say = Callable[[m.Message], Awaitable[None]]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class LiveSession:
    """What one socket does with one model.

    The toggle path (:meth:`apply`) does no database work and never waits inside: it writes the request
    to the worker's stream and leaves waiting for the answer to a task.

    Args:
        say: sends a message to the browser.
        spawn: runs a task that ends with the socket.
        look: reads the state of the worker from the database.
        read_places: reads the SAEs and adapters the session may use from the database.
    """

    def __init__(
        self,
        *,
        model_id: UUID,
        pool: ClientPool,
        say: Say,
        spawn: Spawn,
        look: Callable[[], Awaitable[Resident]],
        read_places: Callable[[], Awaitable[Places]],
    ) -> None:
        self._model_id, self._pool = model_id, pool
        self._say, self._spawn, self._look, self._read_places = say, spawn, look, read_places
        self._places = Places({}, {})
        self._run: int | None = None  # the generation that is wanted
        self._client: ResidentClient | None = None
        self._forget: list[Callable[[], None]] = []  # what the client would call
        self._session = ""
        self._prompt: m.Open | None = None
        self._newest: m.Apply | None = None  # asked for last
        self._last: m.Apply | None = None  # accepted last: what is applied again after a loss
        self._opening = asyncio.Lock()
        self._generation = 0
        self._waiting = 0
        self._looking: object | None = None
        self._showing = self._outdated = False
        self._opener: asyncio.Task[None] | None = None
        self._shown: m.ResidentState | None = None

    # --- the worker -----------------------------------------------------------------------------------

    def look_soon(self) -> None:
        """Something changed; however often that is said, one look at a time is enough."""
        self._outdated = True
        if not self._showing:
            self._showing = True
            self._spawn(self._look_while_outdated())

    async def _look_while_outdated(self) -> None:
        try:
            while self._outdated:
                self._outdated = False
                await self.show_state()
        finally:
            self._showing = False

    async def show_state(self) -> Resident:
        """Look at the worker, tell the browser if something is new, and go on when it is ready again."""
        resident = await self._look()
        if resident.state.state == "ready" and (self._client is None or self._client.closed):
            try:
                await self._connect(resident.address)
            except (ResidentLost, ResidentError):
                # The row says ready, the socket says no: the agent has not noticed yet.
                resident = Resident("", LOST)
        if resident.state != self._shown:
            self._shown = resident.state
            await self._say(resident.state)
        if not resident.address:
            self._keep_looking()
        elif self._prompt is not None and not self._session:
            self._spawn(self._open(reopened=True))
        return resident

    async def _connect(self, address: str) -> None:
        self._client = await self._pool.get(self._model_id, address)
        self._session = ""
        self._part()
        self._forget = [self._client.on_loss(self._lost), self._client.on_attached(self._attach_ended)]

    def _part(self) -> None:
        """Hear no more of the worker."""
        for forget in self._forget:
            forget()
        self._forget = []

    def _attach_ended(self, ended: p.AttachEnded) -> None:
        self._spawn(self._tell_attached(ended))

    async def _tell_attached(self, ended: p.AttachEnded) -> None:
        with contextlib.suppress(Refused):  # of another project: the worker is shared
            await self._place(ended.sae)
            await self._say(
                m.Attached(sae=ended.sae, code=ended.code, message=ended.message, hint=ended.hint)
            )

    def _lost(self) -> None:
        self._session = ""
        self._spawn(self._tell_loss())

    async def _tell_loss(self) -> None:
        self._shown = LOST
        await self._say(LOST)
        self._keep_looking()

    def _keep_looking(self) -> None:
        # The agent announces changes; this covers announcements that got lost.
        if self._looking is None:
            self._looking = self._spawn(self._look_again())

    async def _look_again(self) -> None:
        try:
            while self._client is None or self._client.closed:
                await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(ResidentLost):
                    await self.show_state()
        finally:
            self._looking = None

    def end(self) -> None:
        """The socket is gone: end the session, keep the connection for others."""
        self._part()
        self._close_session()

    def _close_session(self) -> None:
        if self._session and self._client is not None:
            _close(self._client, self._session)
        self._session = ""

    # --- requests -------------------------------------------------------------------------------------

    def open(self, request: m.Open) -> None:
        """Start over with a prompt.

        Raises:
            Refused: ``prompt_too_long`` or ``bad_top``.
        """
        if len(request.prompt) > m.MAX_PROMPT:
            raise Refused(
                "prompt_too_long",
                f"The prompt has {len(request.prompt)} characters; {m.MAX_PROMPT} is the limit.",
            )
        _check_top(request.top)
        self._prompt, self._newest, self._last = request, None, None
        self._generation += 1
        if self._opener is not None:
            self._opener.cancel()  # its prompt is wanted no more
        self._opener = self._spawn(self._open(reopened=False))

    async def _open(self, *, reopened: bool) -> None:
        generation = self._generation
        async with self._opening:
            if generation != self._generation or self._prompt is None or (reopened and self._session):
                return  # a newer prompt took over, or somebody opened it meanwhile
            try:
                if self._client is None or self._client.closed:
                    resident = await self.show_state()
                    if not resident.address or self._client is None:
                        if not reopened:
                            shown = resident.state
                            await self._say(
                                m.Failure(code=shown.code, message=shown.message, hint=shown.hint)
                            )
                        return
                await self._open_on(self._client, self._prompt, reopened)
            except ResidentLost:
                return  # the loss has been told; the session is opened again when the worker is back
            except MicroscopeError as error:
                await self._say(m.Failure(code=error.code, message=error.message, hint=error.hint))
                return
        last = self._last
        if reopened and last is not None:
            self.apply(last)

    async def _open_on(self, client: ResidentClient, prompt: m.Open, reopened: bool) -> None:
        self._close_session()
        if not reopened:
            self._places = await self._read_places()
        session = uuid7().hex
        request = p.OpenSession(id=0, session=session, prompt=prompt.prompt, top=prompt.top)
        try:
            opened = await client.request(request, p.Opened, self._queued(None))
        except asyncio.CancelledError:
            # The page was left, or asks for another prompt: the connection goes on, so nobody else would close it.
            _close(client, session)
            raise
        self._session = session
        await self._say(
            m.Opened(
                session=session,
                prompt=opened.prompt,
                next=opened.next,
                entropy=opened.entropy,
                milliseconds=opened.milliseconds,
                reopened=reopened,
            )
        )

    def apply(self, request: m.Apply) -> None:
        """Send a plan on its way; the answer comes by itself.

        Raises:
            MicroscopeError: the plan is impossible, there is no session, or too much is waiting.
        """
        arrived = time.perf_counter()
        _check_top(request.top)
        client, session = self._ready()
        validate_plan(request.plan, n_layers=client.info.n_layers)
        self._check_waiting()
        self._newest = request
        if self._attached(client, request.plan):
            self._post(client, session, request, arrived)
        else:
            self._ask(self._attach_then_apply(client, request, arrived))

    def _check_waiting(self) -> None:
        if self._waiting >= MAX_WAITING:
            raise Refused(
                "too_many_requests", f"{self._waiting} requests are waiting.", "Send fewer at a time."
            )

    def _ask(self, question: Coroutine[Any, Any, None]) -> None:
        """Wait beside the socket for something to be answered, and the answer to be taken."""
        self._waiting += 1
        self._spawn(question).add_done_callback(self._answered)

    def _answered(self, _task: object) -> None:
        self._waiting -= 1

    def _post(self, client: ResidentClient, session: str, request: m.Apply, arrived: float) -> None:
        self._check_features(request.plan)
        message = p.Apply(
            id=0, session=session, rev=request.rev, plan=request.plan, top=request.top, pinned=request.pinned
        )
        future = client.post(message, self._queued(request.rev))
        self._last = request
        self._ask(self._answer(future, request.rev, arrived))

    def _queued(self, rev: int | None) -> Callable[[int], None]:
        """What passes on how many turns come first."""

        saying: asyncio.Task[None] | None = None

        def tell(ahead: int) -> None:
            nonlocal saying
            if saying is None or saying.done():  # else the page has not even taken the last one
                saying = self._spawn(self._say_queued(ahead, rev))

        return tell

    async def _say_queued(self, ahead: int, rev: int | None) -> None:
        await self._say(m.Queued(ahead=ahead, rev=rev))

    async def _attach_then_apply(self, client: ResidentClient, request: m.Apply, arrived: float) -> None:
        try:
            await self._attach(client, request.plan)
            if self._newest is not request:
                await self._say(m.Superseded(rev=request.rev))
            elif self._session:
                self._post(client, self._session, request, arrived)
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say(
                m.Failure(code=error.code, message=error.message, hint=error.hint, rev=request.rev)
            )

    async def _answer(self, future: asyncio.Future[p.Reply], rev: int, arrived: float) -> None:
        try:
            reply = await future
        except ResidentLost:
            return
        if isinstance(reply, p.Superseded):
            await self._say(m.Superseded(rev=rev))
            return
        try:
            result = checked(reply, p.Result)
        except ResidentError as error:
            await self._say(m.Failure(code=error.code, message=error.message, hint=error.hint, rev=rev))
            return
        await self._say(
            m.Result(
                session=result.session,
                rev=rev,
                tokens=result.tokens,
                kl=result.kl,
                entropy_base=result.entropy_base,
                entropy_patched=result.entropy_patched,
                receipt=result.receipt,
                timings=result.timings,
                server_ms=round((time.perf_counter() - arrived) * 1000, 3),
            )
        )

    def read_positions(self, request: m.ReadPositions) -> None:
        """Ask how far a plan moves every position; the answer comes by itself.

        Raises:
            MicroscopeError: the plan is impossible, or there is no session.
        """
        client, session = self._ready()
        validate_plan(request.plan, n_layers=client.info.n_layers)
        self._check_waiting()
        self._ask(self._read_positions(client, session, request.plan))

    async def _read_positions(self, client: ResidentClient, session: str, plan: EditPlan) -> None:
        try:
            await self._attach(client, plan)
            question = p.ReadPositions(id=0, session=session, plan=plan)
            reply = await client.request(question, p.PositionShifts)
            await self._say(m.PositionShifts(session=session, plan=reply.plan, kl=reply.kl))
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say_failure(
                session, m.Failure(code=error.code, message=error.message, hint=error.hint)
            )

    async def _say_failure(self, session: str, failure: m.Failure) -> None:
        """Unless it is about a prompt that is no longer open."""
        if session == self._session:
            await self._say(failure)

    def generate(self, request: m.Generate) -> None:
        """Continue the prompt; tokens come by themselves, and then the end.

        Raises:
            MicroscopeError: the plan is impossible, or there is no session.
        """
        client, session = self._ready()
        validate_plan(request.plan, n_layers=client.info.n_layers)
        self._check_waiting()
        self._run = request.run
        tokens = None
        if self._attached(client, request.plan):
            self._check_features(request.plan)
            tokens = client.generate(_asked(session, request, request.plan))
        self._ask(self._generate(client, session, request, self._newest, tokens))

    async def _generate(
        self,
        client: ResidentClient,
        session: str,
        request: m.Generate,
        newest: m.Apply | None,
        tokens: AsyncIterator[p.Generated | p.GenerationEnded] | None,
    ) -> None:
        """Pass tokens on; ``newest`` is the plan that was asked for last when this was asked for."""
        reason, plan = "failed", request.plan
        try:
            while tokens is None:
                await self._attach(client, plan)
                if self._run != request.run or self._session != session:
                    reason = "replaced"
                    return
                if self._newest is newest:
                    tokens = client.generate(_asked(session, request, plan))
                elif self._newest is not None:  # changed while something was attached
                    newest, plan = self._newest, self._newest.plan
            async for answer in tokens:
                if isinstance(answer, p.GenerationEnded):
                    reason = answer.reason
                    return
                await self._say(
                    m.Generated(
                        session=session,
                        run=request.run,
                        number=answer.number,
                        plan=answer.plan,
                        base=answer.base,
                        patched=answer.patched,
                    )
                )
        except ResidentLost:
            reason = "lost"
        except MicroscopeError as error:
            await self._say_failure(
                session, m.Failure(code=error.code, message=error.message, hint=error.hint)
            )
        finally:
            await self._say(m.GenerationEnded(run=request.run, reason=reason))

    def stop_generation(self) -> None:
        """End the generation; fine if there is none.

        Raises:
            Refused: there is no session.
        """
        client, session = self._ready()
        self._run = None
        with contextlib.suppress(ResidentLost):
            client.post(p.StopGeneration(id=0, session=session))

    def read_features(self, request: m.ReadFeatures) -> None:
        """Ask for activations on the prompt; the answer comes by itself.

        Raises:
            Refused: there is no session, or too much was asked for.
        """
        if not 1 <= request.top <= 1000 or len(request.indices) > 1000:
            raise Refused("bad_top", "Ask for 1 to 1000 features.")
        client, session = self._ready()
        self._check_waiting()
        self._ask(self._read_features(client, session, request))

    async def _read_features(self, client: ResidentClient, session: str, request: m.ReadFeatures) -> None:
        try:
            place = await self._place(request.sae)
            await client.attach(request.sae, place.path)
            question = p.ReadFeatures(
                id=0, session=session, sae=request.sae, indices=request.indices, top=request.top
            )
            reply = await client.request(question, p.Features)
            found = m.Features(
                session=session, sae=reply.sae, features=reply.features, left_out=reply.left_out
            )
            await self._say(found)
        except ResidentLost:
            return
        except MicroscopeError as error:
            await self._say_failure(
                session, m.Failure(code=error.code, message=error.message, hint=error.hint)
            )

    # --- helpers --------------------------------------------------------------------------------------

    def _ready(self) -> tuple[ResidentClient, str]:
        if self._client is None or self._client.closed:
            raise Refused("model_not_loaded", "The model is not in memory.", "Load it, or wait a moment.")
        if not self._session:
            raise Refused("no_session", "No prompt is open.", "Send open first.")
        return self._client, self._session

    def _attached(self, client: ResidentClient, plan: EditPlan) -> bool:
        """Whether the worker has all the plan names, and this project may use it: the connection is shared."""
        saes = client.attached & self._places.saes.keys()
        adapters = client.attached_adapters & self._places.adapters.keys()
        return plan.saes() <= saes and plan.adapters() <= adapters

    async def _attach(self, client: ResidentClient, plan: EditPlan) -> None:
        """Have the worker load what the plan names.

        Raises:
            MicroscopeError: ``unknown_sae``, ``unknown_adapter``, ``feature_out_of_range``, or what the
                worker says.
            ResidentLost: the worker died.
        """
        for fingerprint in plan.saes():
            await client.attach(fingerprint, (await self._place(fingerprint)).path)
        for fingerprint in plan.adapters():
            if fingerprint not in self._places.adapters:
                self._places = await self._read_places()
            path = self._places.adapters.get(fingerprint)
            if path is None:
                raise Refused(
                    "unknown_adapter",
                    "This project has no such adapter for this model.",
                    "Import the adapter first.",
                )
            await client.attach_adapter(fingerprint, path)
        self._check_features(plan)

    async def _place(self, fingerprint: str) -> SaePlace:
        """The SAE, from what was read at opening or, if it is newer than that, from the database."""
        if fingerprint not in self._places.saes:
            self._places = await self._read_places()
        place = self._places.saes.get(fingerprint)
        if place is None:
            raise Refused(
                "unknown_sae",
                "This project has no such SAE for this model.",
                "Use the fingerprint of one of its SAEs.",
            )
        return place

    def _check_features(self, plan: EditPlan) -> None:
        for number, edit in enumerate(plan.edits, 1):
            place = self._places.saes.get(edit.sae_needed)
            if place is not None and edit.index >= place.width:
                raise Refused(
                    "feature_out_of_range",
                    f"Edit {number} names feature {edit.index} of {place.width}.",
                )


def _close(client: ResidentClient, session: str) -> None:
    """Have the worker forget a session."""
    if not client.closed:
        client.post(p.CloseSession(id=0, session=session))


def _asked(session: str, request: m.Generate, plan: EditPlan) -> p.Generate:
    return p.Generate(
        id=0,
        session=session,
        plan=plan,
        seed=request.seed,
        temperature=request.temperature,
        max_tokens=request.max_tokens,
    )


def _check_top(top: int) -> None:
    if not 1 <= top <= MAX_TOP:
        raise Refused("bad_top", f"top is {top}; use 1 to {MAX_TOP}.")
