"""Graphs under way on one connection: one piece per turn of the fair queue."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from microscope import protocol as p
from microscope.graphs import Graph
from microscope.live.graphs import next_piece, start_graph, stop_graph
from microscope.provenance import Limits
from worker.resident import answers
from worker.resident.running import Running

if TYPE_CHECKING:
    from worker.resident.server import ResidentServer

Send = Callable[[int, p.ResidentReply], Awaitable[None]]


class Graphs:
    """The graphs that the sessions of a connection are having made, one each at most.

    Args:
        server: computes them.
        send: answers a request by its number.
    """

    def __init__(self, server: ResidentServer, send: Send) -> None:
        self._server, self._send = server, send
        self._running: dict[str, Running] = {}

    def halt(self, session: str, reason: str) -> None:
        """Want no further piece; fine if there is no graph."""
        running = self._running.pop(session, None)
        if running is not None and not running.over():
            running.ended = reason

    def stop(self, session: str) -> None:
        """Let go of what a session's graph holds."""
        stop_graph(self._server.resident, session)

    def begin(self, session: str, request: p.ReadProvenance) -> Running:
        """Take over from a graph that may be under way, and queue the beginning of this one.

        Raises:
            MicroscopeError: ``bad_graph_size``.
        """
        self.halt(session, "replaced")
        request.check()
        begin = functools.partial(
            start_graph,
            self._server.resident,
            session,
            request.target,
            request.saes,
            limits=Limits(request.hops, request.parents, request.shown),
            verify=request.verify,
        )
        running = self._running[session] = Running(self._server.submit(session, begin))
        return running

    async def stream(
        self, number: int, session: str, name: str, request: p.ReadProvenance, running: Running
    ) -> None:
        """Send one piece per turn, so that others' turns come in between, until done or told to end.

        Args:
            number: of the request.
            session: its name on this server; ``name`` is the one the peer gave it.
        """
        resident = self._server.resident
        piece = functools.partial(next_piece, resident, session)
        try:
            await running.start.done
            while not running.over():
                made = await self._server.submit(session, piece).done
                if running.over():
                    break
                if made is None:
                    running.ended = "done"
                elif isinstance(made, Graph):
                    await self._send(number, p.GraphBegun(session=name, run=request.run, graph=made))
                else:
                    await self._send(number, p.GraphProgress(session=name, run=request.run, update=made))
            await self._send(number, p.GraphEnded(run=request.run, reason=running.ended))
        except asyncio.CancelledError:
            # Either the session is gone, and what it waited for with it, or the connection is.
            await self._send(number, p.GraphEnded(run=request.run, reason="stopped"))
        except Exception as error:
            running.ended = "failed"
            await self._send(number, answers.failure(error))
        finally:
            if self._running.get(session) is running:
                del self._running[session]
