"""Work divided among the processor's cores."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

T = TypeVar("T")


def in_pieces(task: Callable[[int, int], T], total: int, size: int) -> list[T]:
    """``task(first, last)`` for pieces of ``range(total)``, on as many threads as torch may use.

    Each piece is worked on by one thread, torch's operations in it included, so that what it needs stays in that
    processor's cache, and results do not depend on the number of threads. Gradients are not recorded.
    """
    return begun_in_pieces(task, total, size)()


def begun_in_pieces(task: Callable[[int, int], T], total: int, size: int) -> Callable[[], list[T]]:
    """As :func:`in_pieces`, at once; what is returned waits for the results, once.

    With one thread or one piece nothing is gained by it: then it is waiting that does the work.
    """
    pieces = [(first, min(first + size, total)) for first in range(0, total, size)]
    threads = torch.get_num_threads()

    def run(piece: tuple[int, int]) -> T:
        with torch.no_grad():
            return task(*piece)

    if threads == 1 or len(pieces) == 1:
        return lambda: [run(piece) for piece in pieces]
    pool = _pool(threads, os.getpid())
    futures = [pool.submit(run, piece) for piece in pieces]
    return lambda: [future.result() for future in futures]


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Threads in which torch uses only that one thread; a forked process has none of its parent's."""
    pool = ThreadPoolExecutor(threads, "pieces", initializer=torch.set_num_threads, initargs=(1,))
    all_there = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_there.wait)
    all_there.wait()
    # the setting is each thread's own, but threads made later begin with the one set last
    torch.set_num_threads(threads)
    return pool
