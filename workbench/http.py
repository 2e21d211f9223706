"""HTTP under ASGI: requests take turns on a few threads that stay.

Django's own handler starts a thread for every request, which opens the database, is left by the request and taken up
again around every middleware and ends. Here a request is answered in one go on one thread, whose connection is still
open and whose pages are still in memory; and as Python computes in one thread at a time anyway, those who would only
slow each other down wait for their turn instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.handlers.asgi import ASGIHandler

# Those used last go first, so that few are used at all while little is asked.
THREADS = 4
# When none has become free for so long they do not compute but wait for something, and others get threads of their own.
WAIT_SECONDS = 2.0
# What waits for a model computes nothing meanwhile, and must not make others wait with it.
WAITING = re.compile(r"/api/v1/(?:inference|saes/[^/]+/attach)/?")

_done: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("done_with_thread")


class Handler(ASGIHandler):
    """Answers every request on one of a few threads; what is sent of the answer later needs none."""

    def __init__(self, threads: int = THREADS) -> None:
        super().__init__()
        self._idle: asyncio.LifoQueue[ThreadPoolExecutor] = asyncio.LifoQueue()
        for number in reversed(range(threads)):
            self._idle.put_nowait(ThreadPoolExecutor(1, thread_name_prefix=f"http-{number}"))

    def load_middleware(self, is_async: bool = False) -> None:
        """All of it is synchronous, and so is every view: there is nothing to change threads for in between."""
        super().load_middleware(is_async=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve a request when a thread is free; one that waits for a model has a thread of its own."""
        thread = None if WAITING.fullmatch(scope.get("path", "")) else await self._free_thread()
        if thread is None:
            await super().__call__(scope, receive, send)
            return
        taken = True

        def done() -> None:
            nonlocal taken
            if taken:
                taken = False
                self._idle.put_nowait(thread)

        _done.set(done)
        try:
            async with ThreadSensitiveContext(executor=thread):
                await self.handle(scope, receive, send)
        finally:
            done()

    async def _free_thread(self) -> ThreadPoolExecutor | None:
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._idle.get(), WAIT_SECONDS)
        return None

    async def get_response_async(self, request: Any) -> Any:
        """The answer; its thread is free again before the answer goes out, which may take a slow reader long."""
        try:
            return await sync_to_async(self.get_response)(request)
        finally:
            if done := _done.get(None):
                done()
