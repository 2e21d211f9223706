"""The graph that a live session is having made: asked for, passed on piece by piece, ended."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec

from apps.core.errors import MicroscopeError
from apps.live.resident_client import ResidentClient, ResidentLost
from apps.live.resident_link import Say
from apps.live.session_files import SessionFiles
from microscope import protocol as p

Ready = Callable[[], tuple[ResidentClient, str]]


class SessionGraphs:
    """At most one graph at a time; a new one replaces the one before.

    Args:
        files: the SAEs the session may name.
        say: sends a message to the browser.
        ready: the connection and the name of the open session, or a refusal.
        current: the name of the open session, empty when there is none.
        ask: runs a question beside the socket.
        say_failure: tells the browser of an error of a session that is still open.
    """

    def __init__(
        self,
        *,
        files: SessionFiles,
        say: Say,
        ready: Ready,
        current: Callable[[], str],
        ask: Callable[[Coroutine[Any, Any, None]], None],
        say_failure: Callable[[str, MicroscopeError], Awaitable[None]],
    ) -> None:
        self._files, self._say, self._ready, self._current = files, say, ready, current
        self._ask, self._say_failure = ask, say_failure
        self._wanted: p.ReadProvenance | None = None

    def read(self, request: p.ReadProvenance) -> None:
        """Have a target explained; pieces come by themselves, and then the end.

        Raises:
            MicroscopeError: ``bad_graph_size``, there is no session, or too much is waiting.
        """
        request.check()
        client, session = self._ready()
        self._wanted = request
        self._ask(self._stream(client, session, request))

    async def _stream(self, client: ResidentClient, session: str, request: p.ReadProvenance) -> None:
        reason = "failed"
        try:
            for name in dict.fromkeys((*request.saes, *filter(None, [request.target.sae]))):
                await self._files.attach_sae(client, name)
            if self._wanted is not request or self._current() != session:
                reason = "stopped" if self._wanted is None else "replaced"
                return
            async for answer in client.explain(request, session):
                if isinstance(answer, p.GraphEnded):
                    reason = answer.reason
                    return
                await self._say(self._named(answer) if isinstance(answer, p.GraphBegun) else answer)
        except ResidentLost:
            reason = "lost"
        except MicroscopeError as error:
            await self._say_failure(session, error)
        finally:
            await self._say(p.GraphEnded(run=request.run, reason=reason))

    def _named(self, begun: p.GraphBegun) -> p.GraphBegun:
        """With the SAEs called as people call them."""
        named = self._files.name_of
        saes = [msgspec.structs.replace(sae, name=named(sae.fingerprint)) for sae in begun.graph.saes]
        graph = msgspec.structs.replace(begun.graph, saes=tuple(saes))
        return msgspec.structs.replace(begun, graph=graph)

    def stop(self) -> None:
        """End the graph; fine if there is none.

        Raises:
            MicroscopeError: there is no session.
        """
        client, session = self._ready()
        self._wanted = None
        with contextlib.suppress(ResidentLost):
            client.post(p.StopProvenance(), session)
