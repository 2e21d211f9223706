"""How loops are compiled, and the threads they run on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import torch
from numba import njit

T = TypeVar("T")
# Sums may be taken in any order, as BLAS takes them; infinities and NaN mean what they mean.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",  # a check of every divisor would keep loops from being vectorised
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call; keep the result on disk where a folder can be written.

    It may only call compiled functions of its own module: the kept result is renewed when that changes.
    """
    try:
        made: Callable[..., Any] = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        made = njit(**_OPTIONS)(function)
    return made


def in_pieces(task: Callable[[int, int], T], total: int, size: int) -> list[T]:
    """``task(first, last)`` for pieces of ``range(total)``, on as many threads as torch may use.

    Each piece is worked on by one thread, torch's operations in it included, so that what it needs stays in that
    processor's cache, and results do not depend on the number of threads. Gradients are not recorded.
    """
    pieces = [(first, min(first + size, total)) for first in range(0, total, size)]
    threads = torch.get_num_threads()

    def run(piece: tuple[int, int]) -> T:
        with torch.no_grad():
            return task(*piece)

    if threads == 1 or len(pieces) == 1:
        return [run(piece) for piece in pieces]
    return list(_pool(threads).map(run, pieces))


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch uses only that one thread."""
    pool = ThreadPoolExecutor(threads, "pieces", initializer=torch.set_num_threads, initargs=(1,))
    all_there = threading.Barrier(threads + 1)
    for _ in range(threads):
        pool.submit(all_there.wait)
    all_there.wait()
    # the setting is each thread's own, but threads made later begin with the one set last
    torch.set_num_threads(threads)
    return pool
