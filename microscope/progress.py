"""How long work reports what it is doing, and learns that it should stop.

Library functions take a :class:`Progress`; the command line shows bars, a job's child writes JSON lines.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping

from microscope.errors import Cancelled


class Progress:
    """Silent progress; the base of the others.

    A phase has a name, a unit and perhaps a total; ``advance`` says how far it is. Implementations
    override :meth:`show`, :meth:`log` and :meth:`checkpoint`.
    """

    def __init__(self) -> None:
        self._phase, self._unit, self._total = "", "", 0.0
        self._started = self._counted_from = 0.0

    @contextlib.contextmanager
    def phase(self, name: str, total: float, unit: str, *, done: float = 0.0) -> Iterator[None]:
        """Announce a phase; ``done`` is where a resumed one starts."""
        self._phase, self._unit, self._total = name, unit, total
        self._started, self._counted_from = time.monotonic(), done
        self.show(done, None, {}, force=True)
        yield

    def advance(
        self, done: float, metrics: Mapping[str, float] | None = None, *, final: bool = False
    ) -> None:
        """Say how far the phase is.

        Raises:
            Cancelled: the user asked to stop.
        """
        elapsed = time.monotonic() - self._started
        rate = (done - self._counted_from) / elapsed if elapsed > 0 else None
        self.show(done, rate, dict(metrics or {}), force=final)
        if self.cancelled():
            raise Cancelled

    def show(self, done: float, rate: float | None, metrics: dict[str, float], *, force: bool) -> None:
        """Display the state of the phase; ``rate`` is in units per second."""

    def log(self, message: str, level: str = "info") -> None:
        """Say something worth keeping."""

    def checkpoint(self, done: float) -> None:
        """Work up to here survives a kill."""

    @staticmethod
    def now() -> float:
        """Seconds on the clock that phases are timed with; for work that has a deadline."""
        return time.monotonic()

    def cancelled(self) -> bool:
        """True once the user asked to stop."""
        return False


SILENT = Progress()
