"""Work divided among the processor's cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Generic, TypeVar

import torch

T = TypeVar("T")

# Threads that pieces are divided among where torch's own operations are kept to one.
_cores: ContextVar[int | None] = ContextVar("cores", default=None)


class Handle(Generic[T]):
    """Pieces of work under way.

    With one thread or one piece nothing is started: asking for the results then does the work.
    """

    def __init__(self, work: Callable[[], list[T]], futures: Sequence[Future[T]] = ()) -> None:
        self._work, self._futures = work, futures

    def results(self) -> list[T]:
        """Of all pieces, in their order."""
        return self._work()

    def stop(self) -> None:
        """Start no more pieces, and wait for those that run."""
        for future in self._futures:
            future.cancel()
        wait(self._futures)


def in_pieces(task: Callable[[int, int], T], total: int, size: int) -> list[T]:
    """``task(first, last)`` for pieces of ``range(total)``, on as many threads as torch may use.

    Each piece is worked on by one thread, torch's operations in it included, so that what it needs stays in that
    processor's cache, and results do not depend on the number of threads. Gradients are not recorded.
    """
    return start_in_pieces(task, total, size).results()


def start_in_pieces(task: Callable[[int, int], T], total: int, size: int) -> Handle[T]:
    """As :func:`in_pieces`, without waiting."""
    pieces = [(first, min(first + size, total)) for first in range(0, total, size)]
    threads = _cores.get() or torch.get_num_threads()

    def run(piece: tuple[int, int]) -> T:
        with torch.no_grad():
            return task(*piece)

    if threads == 1 or len(pieces) == 1:
        return Handle(lambda: [run(piece) for piece in pieces])
    pool = _pool("pieces", threads, os.getpid())
    futures = [pool.submit(run, piece) for piece in pieces]
    return Handle(lambda: [future.result() for future in futures], futures)


def alone(task: Callable[[], T]) -> T:
    """``task()`` with torch's operations in it on one thread, that of the task.

    Where other threads keep the cores busy, small operations that are divided wait for them, each a time slice.
    """
    return task() if torch.get_num_threads() == 1 else _pool("alone", 1, os.getpid()).submit(task).result()


@contextmanager
def only_pieces_divided() -> Iterator[None]:
    """Within, torch's own operations of this thread stay on it; what is worked on in pieces is divided as ever.

    After each operation it divides torch's threads wait busily for the next: beside pieces they take the cores
    from these, and on a busy machine every small operation waits for a core it does not need.
    """
    threads = torch.get_num_threads()
    before = _cores.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _cores.reset(before)


@cache
def _pool(name: str, workers: int, _process: int) -> ThreadPoolExecutor:
    """Threads in which torch uses only that one thread; a forked process has none of its parent's."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, name, initializer=_compute_alone)
    all_there = threading.Barrier(workers + 1)
    for _ in range(workers):
        pool.submit(all_there.wait)
    all_there.wait()
    # the setting is each thread's own, but threads made later begin with the one set last
    torch.set_num_threads(threads)
    return pool


def _compute_alone() -> None:
    # A thread takes over the setting of all when it is first asked for, and would forget its own.
    torch.get_num_threads()
    torch.set_num_threads(1)
