"""Forward passes in order, by one process or several that share the cores."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import numpy as np
import torch

from microscope.activations.forward import SiteReader, SitesRows, joined
from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, is_out_of_memory
from microscope.params import Site
from microscope.processes.child import die_with_parent
from microscope.threads import Handle

Batch = Sequence[np.ndarray]  # token windows
Label = TypeVar("Label")

# Batches handed out per process, so that none waits while another's result is being stored.
_AHEAD = 2
# The reader with its model, inherited by a fork instead of being sent.
_inherited: SiteReader | None = None


class Forward:
    """Runs batches of token windows through a model up to the highest site.

    With several processes each is a fork that shares the weights and computes with its part of the
    cores. One process with several threads computes a batch while the one before it is being stored.
    Results come in the order of the batches, so what is stored does not depend on who was faster. Use
    as a context manager.
    """

    def __init__(self, loaded: LoadedModel, sites: Sequence[Site], *, processes: int) -> None:
        if processes > 1 and loaded.device.type != "cpu":
            raise MicroscopeError(
                "processes_need_cpu",
                f"Several processes share the cores of a CPU, but the model is on {loaded.device}.",
                "Leave --processes out.",
            )
        self._processes = processes
        self._reader = SiteReader(loaded, sites)
        self._pool: ProcessPoolExecutor | None = None
        self._running: Handle[SitesRows] | None = None

    def __enter__(self) -> Forward:
        global _inherited
        self._reader.__enter__()
        if self._processes > 1:
            _inherited = self._reader
            threads = max(1, torch.get_num_threads() // self._processes)
            self._pool = ProcessPoolExecutor(
                self._processes,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_start,
                initargs=(threads,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        global _inherited
        _inherited = None
        if self._running is not None:  # without the hooks it would run on to the end of the model
            self._running.stop()
        self._reader.__exit__()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def run(self, batches: Iterable[tuple[Label, Batch]]) -> Iterator[tuple[Label, SitesRows]]:
        """Results of labelled batches, in their order.

        Raises:
            MicroscopeError: ``out_of_memory`` naming a batch that fits, or ``process_died``.
        """
        if self._pool is None:
            yield from self._one_ahead(batches)
            return
        waiting: deque[tuple[Label, Future[SitesRows]]] = deque()
        try:
            for label, batch in batches:
                waiting.append((label, self._pool.submit(_run, batch)))
                if len(waiting) > _AHEAD * self._processes:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise MicroscopeError(
                "process_died",
                "One of the tracing processes was ended from outside; the system may have run out of memory.",
                "Use fewer --processes or a smaller --batch-tokens, and continue with --resume.",
            ) from error

    def _one_ahead(self, batches: Iterable[tuple[Label, Batch]]) -> Iterator[tuple[Label, SitesRows]]:
        before: tuple[Label, Batch] | None = None
        for label, batch in batches:
            # Started when the one before has ended: two at a time would take twice the memory.
            done = None if before is None else (before[0], self._finished(before[1]))
            self._running, before = self._reader.start_windows(batch), (label, batch)
            if done is not None:
                yield done
        if before is not None:
            yield before[0], self._finished(before[1])

    def _finished(self, batch: Batch) -> SitesRows:
        running, self._running = self._running, None
        assert running is not None
        return _or_remedy(lambda: joined(running.results()), self._reader, batch)


def _start(threads: int) -> None:
    die_with_parent()
    torch.set_num_threads(threads)


def _run(batch: Batch) -> SitesRows:
    assert _inherited is not None
    reader = _inherited
    return _or_remedy(lambda: reader.read_windows(batch), reader, batch)


def _or_remedy(read: Callable[[], SitesRows], reader: SiteReader, batch: Batch) -> SitesRows:
    """The rows of a batch; when memory is short, an error that says what fits."""
    try:
        return read()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tokens = max(map(len, batch)) * len(batch)
        raise MicroscopeError(
            "out_of_memory",
            f"A batch of {tokens} tokens does not fit in memory.",
            _remedy(reader, batch),
        ) from error


def _remedy(reader: SiteReader, batch: Batch) -> str:
    """A batch size that was tried and fits."""
    count = len(batch) // 2
    while count:
        some = batch[:count]
        try:
            reader.read_windows(some)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            count //= 2
        else:
            return f"Use --batch-tokens {max(map(len, some)) * count}, which was tried and fits."
    return "Not even one window fits: use a shorter --context-length or a smaller model."
