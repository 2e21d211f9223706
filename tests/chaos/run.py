"""One run: start the portal, keep people at work, kill, let everything come to an end, and look."""

from __future__ import annotations

import collections
import contextlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.chaos.killing import KINDS, Watch, kill_one, running
from tests.chaos.work import LiveSession, Notes, Submitter
from tests.running import ROOT, Lab, Site, alive, make_lab, start_site, wait_for


@dataclass
class Report:
    """What happened."""

    seed: int
    complaints: list[str]
    kills: dict[str, int]
    returns: list[float]
    jobs: dict[str, int] = field(default_factory=dict)
    answers: int = 0

    def text(self) -> str:
        """For people."""
        returns = sorted(self.returns) or [0.0]
        lines = [
            f"seed {self.seed}: {sum(self.kills.values())} kills ("
            + ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
            + ")",
            "jobs: " + ", ".join(f"{count} {state}" for state, count in sorted(self.jobs.items())),
            f"live: {self.answers} answers; back {len(self.returns)} times, "
            f"{returns[len(returns) // 2]:.1f} s after the processes (median), {returns[-1]:.1f} s at most",
        ]
        lines += [f"! {text}" for text in self.complaints] or ["Everything held."]
        return "\n".join(lines)


def alone(folder: Path, *, kills: int, seed: int, longest_pause: float = 6.0) -> Report:
    """The same with a portal of its own on the folder, of which nothing may be left running."""
    site = start_site(folder)
    try:
        report = under_fire(make_lab(site), kills=kills, seed=seed, longest_pause=longest_pause)
        there = site.processes()
    finally:
        site.stop()
    for process in {*filter(alive, there), *_strays(folder)}:
        report.complaints.append(f"process {process.pid} outlives the portal")
    return report


def under_fire(lab: Lab, *, kills: int, seed: int, longest_pause: float = 6.0) -> Report:
    """Kill so many processes of the lab's portal, at moments the seed decides, while people work."""
    site, notes, dice = lab.site, Notes(), random.Random(seed)
    listed = lab.alice.get("/features", sae=lab.sae["id"], ordering="-max_activation")["results"]
    work = Submitter(lab, notes, seed)
    live = LiveSession(lab, notes, listed[0]["index"])
    watch = Watch(lab, notes)
    dead: collections.Counter[str] = collections.Counter()
    try:
        wait_for(lambda: notes.answered, 120, "for the first live answer")
        for number in range(1, kills + 1):
            if dice.random() < 0.5:  # else while the portal still recovers from the last one
                _recovered(site, notes)
            time.sleep(dice.uniform(0.0, longest_pause))
            kill = kill_one(site, dice, number)
            dead[kill.kind] += 1
            print(
                f"{number:>4} killed {kill.kind} {kill.pid}; {len(notes.answered)} live answers", flush=True
            )
        work.stop()
        _recovered(site, notes)
        work.wait_all(600)
    finally:
        work.stop()
        watch.stop()
        live.stop()
    asked = {"submitted": work.submitted, "cancelled": sorted(work.asked_to_cancel)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos.verify"],
        cwd=ROOT,
        env=site.environment,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for text in json.loads(done.stdout):
        notes.complain(text)
    states = collections.Counter(
        lab.alice.get(f"/jobs/{job}")["job"]["state"] for job in dict.fromkeys(work.submitted)
    )
    return Report(seed, notes.complaints, dict(dead), watch.returns, dict(states), len(notes.answered))


def _recovered(site: Site, notes: Notes) -> None:
    """Until every process is back and the live session goes on."""
    wait_for(lambda: _complete(site), 300, "for every process to be back")
    complete = time.monotonic()
    wait_for(lambda: notes.answered[-1] > complete, 60, "for the live session")


def _complete(site: Site) -> bool:
    """One of each, the children of jobs excepted."""
    found = running(site)
    return all(len(found[kind]) == 1 for kind in KINDS if kind != "child") and site.serves()


def _strays(folder: Path) -> Iterator[psutil.Process]:
    """Processes that name the folder, other than this one and who started it."""
    ours = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid not in ours and any(str(folder) in word for word in process.cmdline()[1:]):
                yield process
