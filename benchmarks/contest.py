"""Contests: several ways to do the same work, measured round by round in one interleaved run.

Every contestant is a process in an environment of its own kind, so that peers with other dependencies,
their thread pools and their memory stay out of each other's way. Only one works at a time; the order
rotates with every round, and figures are compared within a round, so that a machine that becomes slower
or faster in between changes all alike.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
# A round or a build that takes longer is taken for a hang.
_PATIENCE_SECONDS = 3600
_LOG_LINES = 6

# The project's own environment.
OWN = "own"

Role = Literal["ours", "peer", "floor"]


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    ``data`` caches inputs; ``pythons`` are those of the environments with the peers' packages, by name;
    ``threads`` is what each contestant may compute with; ``load`` is how many processes others kept
    running when the run began; ``upload_bytes`` is the size of the file that is sent.
    """

    data: Path
    rounds: int
    threads: int
    quick: bool
    pythons: Mapping[str, Path]
    load: float = 0.0
    upload_bytes: int = 2 * 10**9


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    ``entry`` names a builder (``module:function``, by default of ``benchmarks.contestants``), called with
    ``options`` in the child; ``packages`` are those whose versions are worth a note. With ``compared``
    the table gets a column with the ratio of this contestant to every other. ``environment`` is the name of
    the one it runs in; by default ``peers`` for a peer and the project's own for all others.
    """

    name: str
    entry: str
    options: dict[str, Any] = field(default_factory=dict)
    role: Role = "ours"
    packages: tuple[str, ...] = ()
    compared: bool = False
    environment: str = ""

    def python(self, settings: Settings) -> Path:
        """The Python that runs it."""
        environment = self.environment or ("peers" if self.role == "peer" else OWN)
        return Path(sys.executable) if environment == OWN else settings.pythons[environment]


@dataclass(frozen=True)
class Contest:
    """What is compared, and in which unit of work per second; ``once`` does without warming up and repeating."""

    title: str
    unit: str
    about: str
    contestants: tuple[Contestant, ...]
    once: bool = False


class Spread(NamedTuple):
    """Median of several rounds, and (max − min) / median."""

    median: float
    spread: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        middle = statistics.median(values)
        return cls(middle, (max(values) - min(values)) / middle if middle else 0.0)


@dataclass
class Standing:
    """What a contestant reached: rates round by round, or why there are none."""

    contestant: Contestant
    rates: list[float] = field(default_factory=list)
    extra: dict[str, list[float]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    missing: str = ""

    def ratio(self, other: Standing) -> Spread:
        """How many times faster than another, from the rounds both finished."""
        return Spread.of([mine / theirs for mine, theirs in zip(self.rates, other.rates, strict=False)])


class _Failed(Exception):
    """The child broke; the message says why."""


class _Child:
    def __init__(
        self, contestant: Contestant, process: subprocess.Popen[bytes], line: Connection, log: IO[bytes]
    ):
        self.contestant, self._process, self._line, self._log = contestant, process, line, log

    def heard(self) -> dict[str, Any]:
        try:
            if not self._line.poll(_PATIENCE_SECONDS):
                raise _Failed(f"no answer within {_PATIENCE_SECONDS} s")
            answer: dict[str, Any] = json.loads(self._line.recv_bytes())
        except (EOFError, OSError):
            self._process.wait()
            raise _Failed(self._last_words()) from None
        return answer

    def ask(self) -> dict[str, Any]:
        try:
            self._line.send_bytes(b"round")
        except OSError:
            raise _Failed(self._last_words()) from None
        return self.heard()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]
        sys.stderr.write("\n".join(["", f"{self.contestant.name} ended:", *lines, ""]))
        return lines[-1].strip() if lines else f"ended with code {self._process.returncode}"


@contextmanager
def _started(contestant: Contestant, settings: Settings) -> Iterator[_Child]:
    mine, theirs = socket.socketpair()
    threads = str(settings.threads)
    request = {"options": contestant.options, "packages": contestant.packages}
    with tempfile.TemporaryFile() as log, Connection(mine.detach()) as line:
        process = subprocess.Popen(
            [
                str(contestant.python(settings)),
                "-m",
                "benchmarks.child",
                str(theirs.fileno()),
                contestant.entry,
                json.dumps(request),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "WANDB_MODE": "disabled",
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        try:
            yield _Child(contestant, process, line, log)
        finally:
            line.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run(contest: Contest, settings: Settings) -> list[Standing]:
    """Measure all contestants of a contest; those that cannot take part say why in their standing."""
    standings = {c.name: Standing(c) for c in contest.contestants}
    with ExitStack() as stack:
        children: dict[str, _Child] = {}
        for contestant in contest.contestants:
            if contestant.python(settings).exists():
                children[contestant.name] = stack.enter_context(_started(contestant, settings))
            else:
                standings[contestant.name].missing = "not installed"
        for name in list(children):
            if not _ready(children[name], standings[name]):
                del children[name]
        # the one before the first warms up
        for number in range(1) if contest.once else range(-1, settings.rounds):
            names = list(children)
            turn = max(number, 0) % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                try:
                    answer = children[name].ask()
                except _Failed as failure:
                    standings[name].missing = f"failed: {failure}"
                    del children[name]
                    continue
                if number >= 0:
                    _keep(standings[name], answer)
    return list(standings.values())


def _ready(child: _Child, standing: Standing) -> bool:
    try:
        answer = child.heard()
    except _Failed as failure:
        standing.missing = f"failed: {failure}"
        return False
    if "absent" in answer:
        standing.missing = f"not installed ({answer['absent']})"
        return False
    standing.versions = answer["versions"]
    return True


def _keep(standing: Standing, answer: dict[str, Any]) -> None:
    standing.rates.append(answer["amount"] / answer["seconds"])
    for name, value in answer["extra"].items():
        standing.extra.setdefault(name, []).append(value)
