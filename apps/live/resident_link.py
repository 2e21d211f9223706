"""The way of one socket to the resident worker of its model: found, watched, and found again after a loss."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol
from uuid import UUID

from apps.live.resident_client import ClientPool, ResidentClient, ResidentError, ResidentLost
from apps.live.services import Resident
from microscope import protocol as p

LOOK_SECONDS = 1.0
LOST = p.ResidentState(
    state="lost",
    code="resident_lost",
    message="The process that held the model has died.",
    hint="It is being started again; the session continues by itself.",
)

Say = Callable[[p.Message], Awaitable[None]]
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Listener(Protocol):
    """What is told of the worker."""

    def worker_connected(self) -> None:
        """There is a new connection, which knows of no session."""

    def worker_ready(self) -> None:
        """The worker was found ready, now or still."""

    def worker_lost(self) -> None:
        """The connection has ended."""

    def sae_attached(self, attached: p.Attached) -> None:
        """An SAE that took long to read is there, or failed."""


class ResidentLink:
    """Keeps the browser informed about the worker, and the connection to it open.

    Args:
        say: sends a message to the browser.
        spawn: runs a task that ends with the socket.
        look: reads the state of the worker from the database.
        listener: hears of changes.
    """

    def __init__(
        self,
        *,
        model_id: UUID,
        pool: ClientPool,
        say: Say,
        spawn: Spawn,
        look: Callable[[], Awaitable[Resident]],
        listener: Listener,
    ) -> None:
        self._model_id, self._pool, self._listener = model_id, pool, listener
        self._say, self._spawn, self._look = say, spawn, look
        self._client: ResidentClient | None = None
        self._unsubscribe: list[Callable[[], None]] = []
        self._polling: object | None = None
        self._showing = self._outdated = False
        self._shown: p.ResidentState | None = None

    @property
    def client(self) -> ResidentClient | None:
        """The connection, if it is open."""
        return self._client if self._client is not None and not self._client.closed else None

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
        """Look at the worker, tell the browser if something is new, and connect when it is ready."""
        resident = await self._look()
        if resident.state.state == "ready" and self.client is None:
            try:
                await self._connect(resident.address)
            except (ResidentLost, ResidentError):
                # The row says ready, the socket says no: the agent has not noticed yet.
                resident = Resident("", LOST)
        if resident.state != self._shown:
            self._shown = resident.state
            await self._say(resident.state)
        if resident.address:
            self._listener.worker_ready()
        else:
            self._keep_looking()
        return resident

    async def _connect(self, address: str) -> None:
        self._client = await self._pool.get(self._model_id, address)
        self._listener.worker_connected()
        self.leave()
        self._unsubscribe = [
            self._client.on_loss(self._lost),
            self._client.on_attached(self._listener.sae_attached),
        ]

    def leave(self) -> None:
        """Hear no more of the worker; the connection stays for others."""
        for unsubscribe in self._unsubscribe:
            unsubscribe()
        self._unsubscribe = []

    def _lost(self) -> None:
        self._listener.worker_lost()
        self._spawn(self._tell_loss())

    async def _tell_loss(self) -> None:
        self._shown = LOST
        await self._say(LOST)
        self._keep_looking()

    def _keep_looking(self) -> None:
        # The agent announces changes; this covers announcements that got lost.
        if self._polling is None:
            self._polling = self._spawn(self._poll())

    async def _poll(self) -> None:
        try:
            while self.client is None:
                await asyncio.sleep(LOOK_SECONDS)
                with contextlib.suppress(ResidentLost):
                    await self.show_state()
        finally:
            self._polling = None
