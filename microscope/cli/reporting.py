"""Progress for people (bars) and for programs (JSON lines)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from microscope.params import JobEvent
from microscope.progress import Progress

_EVENT_SECONDS = 0.25
_CANCEL_CHECK_SECONDS = 0.5


class BarProgress(Progress):
    """Bars on standard error; results stay alone on standard output."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._bars: Bars | None = None
        self._task: Any = None

    @contextlib.contextmanager
    def phase(self, name: str, total: float, unit: str, *, done: float = 0.0) -> Iterator[None]:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<22}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[extra]}"),
        )
        with Bars(*columns, console=self._console) as self._bars:
            self._task = self._bars.add_task(name, total=total, completed=int(done), amount="", extra="")
            with super().phase(name, total, unit, done=done):
                yield
        self._bars = None

    def show(self, done: float, rate: float | None, metrics: dict[str, float], *, force: bool) -> None:
        if self._bars is None:
            return
        amount = f"{done:,.0f}/{self._total:,.0f} {self._unit}"
        if rate:
            amount += f"  {rate:,.0f}/s"
        extra = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        fields: dict[str, Any] = {"extra": extra} if metrics else {}
        self._bars.update(self._task, completed=done, amount=amount, **fields)

    def log(self, message: str, level: str = "info") -> None:
        style = {"warning": "yellow", "error": "red"}.get(level, "dim")
        self._console.print(message, style=style, highlight=False)


class EventProgress(Progress):
    """One JSON object per line, for the supervisor of a job; polls a file to learn of a cancellation."""

    def __init__(self, stream: IO[str], cancel_file: Path | None) -> None:
        super().__init__()
        self._stream, self._cancel_file = stream, cancel_file
        self._last_event = self._last_check = 0.0
        self._metrics: dict[str, float] = {}

    def show(self, done: float, rate: float | None, metrics: dict[str, float], *, force: bool) -> None:
        self._metrics |= metrics
        now = time.monotonic()
        if not force and now - self._last_event < _EVENT_SECONDS:
            return
        self._last_event = now
        self.send(
            JobEvent(
                type="progress",
                phase=self._phase,
                done=done,
                total=self._total,
                unit=self._unit,
                rate=rate,
                metrics=self._metrics,
            )
        )
        self._metrics = {}

    def log(self, message: str, level: str = "info") -> None:
        self.send(JobEvent(type="log", message=message, level=level))  # type: ignore[arg-type]

    def checkpoint(self, done: float) -> None:
        self.send(JobEvent(type="checkpoint", done=done, total=self._total, unit=self._unit))

    def cancelled(self) -> bool:
        now = time.monotonic()
        if self._cancel_file is None or now - self._last_check < _CANCEL_CHECK_SECONDS:
            return False
        self._last_check = now
        return self._cancel_file.exists()

    def send(self, event: JobEvent) -> None:
        """Write one event and flush it."""
        self._stream.write(msgspec.json.encode(event).decode() + "\n")
        self._stream.flush()
