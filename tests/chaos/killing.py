"""The processes of the portal, which of them dies next, and whether all of them are back."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import threading
import time
from dataclasses import dataclass

import httpx
import psutil

from tests.chaos.work import Notes
from tests.running import Lab, Site, alive

BACK_SECONDS = 5.0  # a live session goes on so soon after the processes it needs are there

# Words of its command line that tell a process.
KINDS: dict[str, tuple[str, ...]] = {
    "child": ("microscope",),
    "worker": ("celery", "worker"),
    "resident": ("worker.resident",),
    "web": ("workbench.web",),
    "valkey": (),
    "agent": ("worker.agent",),
    "beat": ("celery", "beat"),
}
# How often each is chosen beside the others.
WEIGHTS = {"child": 4, "worker": 4, "resident": 4, "web": 4, "valkey": 4, "agent": 1, "beat": 1}
# What a live session needs.
NEEDED = ("web", "resident", "valkey")


def kind_of(process: psutil.Process) -> str:
    """The name of its kind; empty for others."""
    with contextlib.suppress(psutil.NoSuchProcess):
        words = {*process.cmdline()}
        if "valkey" in process.name():  # which rewrites its command line
            return "valkey"
        for kind, marks in KINDS.items():
            if marks and set(marks) <= words:
                return kind
    return ""


def running(site: Site) -> dict[str, list[psutil.Process]]:
    """The processes of each kind."""
    found: dict[str, list[psutil.Process]] = {kind: [] for kind in KINDS}
    for process in site.processes():
        kind = kind_of(process)
        if kind:
            found[kind].append(process)
    return found


@dataclass(frozen=True)
class Kill:
    """One that happened."""

    number: int
    kind: str
    pid: int


def kill_one(site: Site, dice: random.Random, number: int) -> Kill:
    """Kill a random process of a random kind, of those that are there."""
    while True:
        there = {kind: found for kind, found in running(site).items() if found}
        if not there:
            time.sleep(0.1)
            continue
        names = [name for name in KINDS if name in there]
        kind = dice.choices(names, [WEIGHTS[name] for name in names])[0]
        victim = dice.choice(there[kind])
        with contextlib.suppress(psutil.NoSuchProcess):
            if alive(victim):
                victim.kill()
                return Kill(number, kind, victim.pid)


class Watch:
    """Notes from when on everything a live session needs is there, and when it was answered after that."""

    def __init__(self, lab: Lab, notes: Notes) -> None:
        self._lab, self._notes = lab, notes
        self._stop = threading.Event()
        self._since: float | None = None  # since when all are there, while the session has not been answered
        self._up = True
        self.returns: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more looking."""
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        with contextlib.closing(
            sqlite3.connect(f"file:{self._lab.site.folder}/db.sqlite3?mode=ro", uri=True, timeout=5)
        ) as database:
            while not self._stop.wait(0.1):
                self._look(self._all_there(database))

    def _look(self, up: bool) -> None:
        now = time.monotonic()
        if up and not self._up:
            self._since = now
        if not up:
            self._since = None
        self._up = up
        if self._since is not None and self._notes.answered and self._notes.answered[-1] > self._since:
            self.returns.append(self._notes.answered[-1] - self._since)
            if self.returns[-1] > BACK_SECONDS:
                self._notes.complain(
                    f"the live session was back {self.returns[-1]:.1f} s after its processes"
                )
            self._since = None

    def _all_there(self, database: sqlite3.Connection) -> bool:
        with contextlib.suppress(sqlite3.OperationalError, httpx.HTTPError, psutil.NoSuchProcess):
            row = database.execute("SELECT pid FROM live_residentworker WHERE state = 'ready'").fetchone()
            there = running(self._lab.site)
            return (
                row is not None
                and row[0] in {process.pid for process in there["resident"]}
                and all(there[kind] for kind in NEEDED)
                and httpx.get(f"{self._lab.site.url}/livez", timeout=5).status_code == 200
            )
        return False
