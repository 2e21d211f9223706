"""A process that is supervised: started in a process group of its own, watched, and stopped with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from microscope.processes.child import die_with_parent
from microscope.processes.limits import Limits, impose

_POLL_SECONDS = 0.02
# An event loop that waits for as long as a process lives must not be busy with it.
_LONGEST_POLL_SECONDS = 0.25
# Stopping ends with SIGKILL, which only the kernel can delay.
_KILLED_SECONDS = 30.0

Output = int | IO[bytes]


class ProcessGroup:
    """A running process and whatever it starts.

    It is not reaped before :meth:`reap`, so that its id, which is also the id of the group, stays its own and
    a signal never reaches a stranger.

    Args:
        command: its argument list.
        environment: its variables, all of them.
        folder: its working folder; the one of this process by default.
        stdout, stderr: as for :class:`subprocess.Popen`; it has no standard input.
        limits: what it may take; None where it is not limited.
        keep_open: descriptors it inherits.
        tied: whether the kernel kills it when the thread that starts it ends, for programs that do not ask
            for that themselves (:func:`die_with_parent`).

    Raises:
        OSError: it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path | None = None,
        stdout: Output = subprocess.PIPE,
        stderr: Output = subprocess.PIPE,
        limits: Limits | None = None,
        keep_open: Sequence[int] = (),
        tied: bool = False,
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=tuple(keep_open),
            preexec_fn=die_with_parent if tied else None,
        )
        self.started = time.monotonic()
        if limits is not None:
            impose(self.pid, limits)

    @property
    def pid(self) -> int:
        """Its process id, and the id of its group."""
        return self._process.pid

    @property
    def stdout(self) -> IO[bytes]:
        """What it prints, where that is a pipe."""
        assert self._process.stdout is not None
        return self._process.stdout

    @property
    def stderr(self) -> IO[bytes]:
        """What it writes on standard error, where that is a pipe."""
        assert self._process.stderr is not None
        return self._process.stderr

    @property
    def running(self) -> bool:
        """Whether the process itself has not ended."""
        if self._process.returncode is not None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.pid, flags) is None

    def signal(self, number: signal.Signals) -> None:
        """Signal the whole group; nothing once it has been reaped."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """Whether the process ends within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    async def ended(self, seconds: float) -> bool:
        """:meth:`wait` for an event loop; the longer it waits, the more rarely it looks."""
        deadline, pause = time.monotonic() + seconds, _POLL_SECONDS
        while self.running:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            await asyncio.sleep(min(pause, left))
            pause = min(1.2 * pause, _LONGEST_POLL_SECONDS)
        return True

    def reap(self) -> int:
        """Kill what is left of the group, and return the status of the process: negative for a signal.

        Processes it started may outlive it and hold its pipes; without it they have nothing to do.
        """
        self.signal(signal.SIGKILL)
        return self._process.wait()

    def stop(self, seconds: float) -> int:
        """Ask the group to end, kill it after so many seconds; the status of the process."""
        self.signal(signal.SIGTERM)
        self.wait(seconds)
        return self.reap()

    async def stopped(self, seconds: float) -> int:
        """:meth:`stop` for an event loop."""
        self.signal(signal.SIGTERM)
        await self.ended(seconds)
        self.signal(signal.SIGKILL)
        await self.ended(_KILLED_SECONDS)
        return self.reap()


class Backoff:
    """How long to wait before a process that ended is started again.

    Args:
        delays: seconds after the first, second, … failure in a row; the last one from then on.
        stable: a process that ran for longer than so many seconds counts as the first failure again.
    """

    def __init__(self, delays: Sequence[float], *, stable: float) -> None:
        self._delays, self._stable = delays, stable
        self._failures = 0

    def after(self, lived: float) -> float:
        """Seconds to wait after a process that ran for ``lived`` seconds."""
        if lived > self._stable:
            self._failures = 0
        delay = self._delays[min(self._failures, len(self._delays) - 1)]
        self._failures += 1
        return delay
