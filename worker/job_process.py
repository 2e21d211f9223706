"""The child process that does a job's work, and what it says while it does."""

from __future__ import annotations

import collections
import contextlib
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

from microscope.params import JobEvent
from microscope.processes.group import ProcessGroup
from microscope.processes.limits import Limits
from worker.workdirs import record_child

_LINE_LIMIT = 4 * 2**20
_LOG_LIMIT = 2 * 2**20
STDERR_LINES = 200


def read_event(line: bytes) -> JobEvent:
    """One line of a child's standard output; what is no event becomes a log line, so nothing is swallowed."""
    try:
        data = msgspec.json.decode(line)
        if isinstance(data, dict) and isinstance(data.get("metrics"), dict):
            # A loss can be infinite for a step; JSON says null then, and a curve has nothing to draw.
            data["metrics"] = {k: v for k, v in data["metrics"].items() if v is not None}
        return msgspec.convert(data, type=JobEvent, strict=False)
    except msgspec.MsgspecError:
        return JobEvent(type="log", message=line.decode(errors="replace").rstrip()[:2000])


class JobProcess(ProcessGroup):
    """A running child: its events, and the last lines it wrote on standard error.

    It asks the kernel to be killed when the thread that starts it ends: start it from a thread that lives as
    long as the job does.

    Args:
        command: its argument list.
        workdir: its working folder; ``child.log`` there receives what it says on standard error.
        environment: its variables, all of them.
        limits: what it may take; None where it is not limited.
        keep_open: descriptors it inherits, such as the lock of the folder.
    """

    def __init__(
        self,
        command: Sequence[str],
        workdir: Path,
        *,
        environment: Mapping[str, str],
        limits: Limits | None = None,
        keep_open: Sequence[int] = (),
    ) -> None:
        self.events: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
        self._errors: collections.deque[str] = collections.deque(maxlen=STDERR_LINES)
        super().__init__(command, environment=environment, folder=workdir, limits=limits, keep_open=keep_open)
        self._readers = [
            threading.Thread(target=self._read_events, args=(self.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self.stderr, workdir), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            record_child(workdir, self.pid)
        except OSError:
            # Unrecorded, it could not be found by a later attempt.
            self.reap()
            raise

    def reap(self) -> int:
        """Kill what is left of the group, read the rest of the output, and return the status."""
        status = super().reap()
        for reader in self._readers:
            reader.join(timeout=5)
        return status

    @property
    def last_errors(self) -> list[str]:
        """The last lines it wrote on standard error."""
        return list(self._errors)

    def _read_events(self, stream: IO[bytes]) -> None:
        with stream:
            while line := stream.readline(_LINE_LIMIT):
                if line.strip():
                    self.events.put(read_event(line))

    def _read_errors(self, stream: IO[bytes], workdir: Path) -> None:
        path = workdir / "child.log"
        # One file for all attempts; a child that floods it does not fill the disk.
        room = _LOG_LIMIT - (path.stat().st_size if path.exists() else 0)
        with stream, path.open("ab", buffering=0) as log:
            while line := stream.readline(64 * 1024):
                self._errors.append(line.decode(errors="replace").rstrip())
                # A full disk costs the file, never the reading: a child whose errors nobody reads stops.
                with contextlib.suppress(OSError):
                    if room > 0:
                        room -= len(line)
                        log.write(line)
