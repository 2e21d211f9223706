"""The child process that does a job's work: started in a session of its own, read line by line, stopped for sure."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec
import psutil

from microscope.params import JobEvent
from worker.limits import Limits, impose

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


class Child:
    """A running child.

    Args:
        command: its argument list.
        workdir: its working folder; ``child.log`` there receives what it says on standard error.
        environment: its variables, all of them.
        limits: what it may take; None where nobody is to hold it to anything.
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
        # The child asks the kernel to be killed when the thread that starts it ends: start it from a thread
        # that lives as long as the job does.
        self._process = subprocess.Popen(
            list(command),
            cwd=workdir,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=tuple(keep_open),
        )
        if limits is not None:
            impose(self._process.pid, limits)
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read_events, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._read_errors, args=(self._process.stderr, workdir), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._record(workdir)
        except OSError:
            # Unrecorded, it could not be found by a later attempt.
            self.finish()
            raise

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended. An ended child is left a zombie, so that its id stays its own."""
        if self._process.returncode is not None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is None

    def signal(self, number: signal.Signals) -> None:
        """Signal the child and everything it started; nothing after :meth:`finish`."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    def finish(self) -> int:
        """Kill what is left of the group, read the rest of the output, and return the status, negative for a signal."""
        # Helpers it started may outlive it and hold the pipes; without it they have nothing to do.
        self.signal(signal.SIGKILL)
        status = self._process.wait()
        for reader in self._readers:
            reader.join(timeout=5)
        return status

    @property
    def last_errors(self) -> list[str]:
        """The last lines it wrote on standard error."""
        return list(self._errors)

    def _record(self, workdir: Path) -> None:
        """Note who is at work here, so that a later attempt can end a leftover."""
        with contextlib.suppress(psutil.NoSuchProcess):
            started = psutil.Process(self._process.pid).create_time()
            (workdir / "child.json").write_text(json.dumps({"pid": self._process.pid, "started": started}))

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


def kill_leftover(workdir: Path) -> bool:
    """Kill the child of an earlier attempt if it still runs; True when there was one."""
    try:
        note: dict[str, Any] = json.loads((workdir / "child.json").read_text())
        process = psutil.Process(int(note["pid"]))
        if abs(process.create_time() - float(note["started"])) > 1:
            return False
        os.killpg(process.pid, signal.SIGKILL)
    except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
        return False
    return True
