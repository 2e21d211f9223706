"""Compute items of an iterator a little before they are asked for."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class _End(NamedTuple):
    error: BaseException | None


def read_ahead(source: Iterator[T], depth: int) -> Iterator[T]:
    """The items of an iterator, computed in a thread at most ``depth`` items before they are asked for.

    An error of the source is raised where its item would have come. The thread ends with this iterator:
    when it is exhausted, closed or forgotten.
    """
    items: queue.SimpleQueue[T | _End] = queue.SimpleQueue()
    room = threading.Semaphore(depth)
    given_up = threading.Event()

    def work() -> None:
        error: BaseException | None = None
        try:
            while True:
                room.acquire()
                if given_up.is_set():
                    return
                items.put(next(source))
        except StopIteration:
            pass
        except BaseException as raised:  # whatever it is, the reader gets it
            error = raised
        items.put(_End(error))

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            room.release()
            yield item
    finally:
        given_up.set()
        room.release()
        thread.join()
