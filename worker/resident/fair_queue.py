"""A fair queue: sessions take turns on the one compute thread."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Work:
    """One call for the compute thread.

    ``rev`` is set for work that a newer revision of the same session replaces; ``done`` receives the
    result, the exception, or :class:`Superseded`.
    """

    call: Callable[[], Any]
    done: asyncio.Future[Any]
    rev: int | None = None
    queued_at: float = field(default_factory=time.perf_counter)


class Superseded(Exception):
    """A newer revision arrived before this one was computed."""


class FairQueue:
    """Sessions take turns, one piece of work each, so that one busy session cannot starve the others.

    Within a session order is kept, except that a revision still waiting is dropped when a newer comes.
    """

    def __init__(self) -> None:
        self._queues: OrderedDict[str, deque[Work]] = OrderedDict()
        self._ready = asyncio.Event()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def put(self, session: str, work: Work) -> None:
        """Queue work for a session."""
        queue = self._queues.setdefault(session, deque())
        if work.rev is not None:
            for waiting in [w for w in queue if w.rev is not None and w.rev < work.rev]:
                queue.remove(waiting)
                if not waiting.done.done():
                    waiting.done.set_exception(Superseded())
        queue.append(work)
        self._ready.set()

    def ahead(self, work: Work) -> int:
        """How many pieces of work end before this one begins, with the one that runs; 0 once it runs itself."""
        for position, (_, queue) in enumerate(self._queues.items()):
            if work in queue:
                # Everybody has a turn for each of the session's own, and those in front one more.
                before = queue.index(work)
                others = (q for number, q in enumerate(self._queues.values()) if number != position)
                rounds = (min(len(q), before + (n < position)) for n, q in enumerate(others))
                return 1 + before + sum(rounds)
        return 0

    async def next(self) -> Work:
        """The next piece of work, waiting for one."""
        while not self._queues:
            self._ready.clear()
            await self._ready.wait()
        session, queue = self._queues.popitem(last=False)
        work = queue.popleft()
        if queue:
            self._queues[session] = queue  # to the end: the others come first
        return work

    def forget(self, session: str) -> None:
        """Drop everything a session still waits for."""
        for work in self._queues.pop(session, ()):
            work.done.cancel()
