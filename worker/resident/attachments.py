"""SAEs being read into memory: each once, however many ask, and also after the one who asked has left."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from microscope import protocol as p

Key = tuple[str, str]  # fingerprint and folder


class Attachments:
    """Lets requests wait for reading that goes on without them.

    Args:
        read: reads an SAE of a fingerprint from a folder and keeps it.
        announce: called with the fingerprint, and the failure if it was one, when reading ends that a request was
            told to come back for.
    """

    def __init__(
        self,
        read: Callable[[str, str], Awaitable[p.SaeAttached]],
        announce: Callable[[str, Exception | None], None],
    ) -> None:
        self._read, self._announce = read, announce
        self._running: dict[Key, asyncio.Task[p.SaeAttached | Exception]] = {}
        self._left: set[Key] = set()  # somebody was told to wait
        self._failed: dict[Key, Exception] = {}  # and has not heard of the failure yet

    async def attach(self, request: p.AttachSae) -> p.SaeAttached | p.Attaching:
        """``attached``, or ``attaching`` when that takes longer than the request waits.

        Raises:
            Exception: what the reading raised, now or since this was answered with ``attaching``.
        """
        key = request.sae, request.path
        failed = self._failed.pop(key, None)
        if failed is not None:
            raise failed
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._run(key))
        # A waiter that is cancelled does not take the reading with it.
        await asyncio.wait({task}, timeout=request.wait_seconds)
        if not task.done():
            self._left.add(key)
            return p.Attaching(sae=request.sae)
        self._failed.pop(key, None)
        outcome = task.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run(self, key: Key) -> p.SaeAttached | Exception:
        try:
            outcome: p.SaeAttached | Exception = await self._read(*key)
        except Exception as error:
            outcome = error.with_traceback(None)  # which would keep what was read
        finally:
            del self._running[key]
        if key in self._left:
            self._left.discard(key)
            failure = outcome if isinstance(outcome, Exception) else None
            if failure is not None:
                self._failed[key] = failure
            self._announce(key[0], failure)
        return outcome
