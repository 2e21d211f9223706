"""Round-trip time of a toggle: from sending a plan over a real WebSocket to having its answer.

Starts the whole portal on a folder of its own (daphne, Celery, Valkey, the resident worker) with the demo
model and an SAE, and lets people toggle at once. What is
measured is what a browser would wait for, on loopback; the time the resident worker computed and the time
the request waited for its turn are in every answer, and the rest is the overhead of the way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contestants.live_ours import stand_in
from benchmarks.report import goal
from microscope.remote import Workbench
from microscope.sae import save_sae
from workbench.demo import assets, patching
from workbench.demo.patching import quantile, scale_edit, wait_until_ready
from workbench.demo.portal import Portal, Socket
from workbench.supervisor import Supervisor, free_port, wait_for_web

LAYER, WIDTH = 15, 576
# Milliseconds: round trip with most people (p95), overhead (p50, p95), compute of a seen state.
ROUND_TRIP, _OVERHEAD, _SEEN = 400.0, (8.0, 20.0), 3.0
_WARM_UP = 3
_PASSWORD = "only-for-this-benchmark"
_WORDS = " ".join([patching.PROMPT] * 8).split()


@dataclass
class Times:
    """Milliseconds of every toggle: the round trip, of which computing and waiting for a turn."""

    tokens: int = 0
    total: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)

    @property
    def overhead(self) -> list[float]:
        """What neither the computation nor the queue explains."""
        return [t - c - q for t, c, q in zip(self.total, self.compute, self.queued, strict=True)]


# By number of people, and whether the states were new.
Rows = dict[tuple[int, bool], Times]


def prepare(portal: Portal, model_file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A loaded model and an SAE for it, a random one, since its quality changes no time."""
    project = portal.post("/projects", {"name": "Benchmark"})
    body = {"project": project["id"], "name": "model", "source": "gguf", "reference": str(model_file)}
    made = portal.post("/models", body)
    portal.wait(made["job"]["id"], lambda job: None)
    model = made["model"]
    token = portal.post("/tokens", {"name": "benchmark", "scopes": ["write", "jobs", "artifacts"]})["secret"]
    save_sae(stand_in(WIDTH, LAYER), folder / "sae")
    with Workbench(portal.url, token) as workbench:
        job = workbench.import_sae(folder / "sae", model=model["id"], name="sae")
    portal.wait(job.id, lambda job: None)
    portal.post(f"/models/{model['id']}/load")
    found = portal.find("/saes", "sae", project=project["id"])
    assert found is not None
    return model, portal.get(f"/saes/{found['id']}")


async def open_prompt(socket: Socket, tokens: int) -> int:
    """Open a session on the longest beginning of the text that has at most so many tokens; returns how many."""
    words = tokens
    while True:
        await socket.send("open", prompt=" ".join(_WORDS[:words]))
        found = len((await socket.expect("opened"))["prompt"])
        if found <= tokens or words == 1:
            return found
        words -= max(1, (found - tokens) // 2)


async def measure(
    portal: Portal, model: str, sae: dict[str, Any], *, users: int, seconds: float, tokens: int, new: bool
) -> Times:
    """Let so many people toggle, once a second each, evenly spread over the second.

    Args:
        portal: signed in.
        model: id of the loaded model.
        sae: whose features are edited.
        users: how many sockets at once.
        seconds: how long.
        tokens: length of the prompt.
        new: every state is new, the strength differing each time as on a slider; else a patch seen before
            goes off and on again.
    """
    times = Times()
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(portal.socket(f"/ws/live/{model}/")) for _ in range(users)]
        features = []
        for socket in sockets:
            await wait_until_ready(socket)
            times.tokens = await open_prompt(socket, tokens)
            await socket.send("read_features", sae=sae["fingerprint"], top=1)
            features.append((await socket.expect("features"))["features"][0]["index"])
        begin = time.perf_counter()

        async def person(number: int, socket: Socket) -> None:
            await asyncio.sleep(number / users)
            for rev in range(1, 10_000):
                started = time.perf_counter()
                edit = scale_edit(sae, features[number], 2 + (rev / 100 if new else 0))
                plan = {"edits": [edit] if new or rev % 2 else []}
                await socket.send("apply", rev=rev, plan=plan)
                result = await socket.expect("result")
                ended = time.perf_counter()
                assert result["rev"] == rev
                spent = 1000 * (ended - started)
                if rev > _WARM_UP:
                    assert (result["receipt"]["reused"] == "computed") == new, result["receipt"]
                    times.total.append(spent)
                    times.compute.append(result["timings"]["compute"])
                    times.queued.append(result["timings"]["queued"])
                    if ended - begin > seconds:
                        return
                await asyncio.sleep(max(0.0, 1.0 - spent / 1000))

        await asyncio.gather(*(person(n, s) for n, s in enumerate(sockets)))
    return times


def table(rows: Rows) -> str:
    """Markdown: p50, p95 and p99 of each row in milliseconds."""
    lines = [
        "| toggles | count | round trip p50 | p95 | p99 | compute p50 | queue p50 | overhead p50 | p95 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (users, new), t in rows.items():
        numbers = [
            *(quantile(t.total, q) for q in (0.5, 0.95, 0.99)),
            quantile(t.compute, 0.5),
            quantile(t.queued, 0.5),
            *(quantile(t.overhead, q) for q in (0.5, 0.95)),
        ]
        name = f"{'1 person' if users == 1 else f'{users} people'}, {'new states' if new else 'seen states'}"
        lines.append(
            f"| {name}, {t.tokens} tokens | {len(t.total)} | "
            + " | ".join(f"{n:.1f}" for n in numbers)
            + " |"
        )
    return "\n".join(lines)


def goals(rows: Rows) -> Iterator[str]:
    """Whether the bounds on round trips, on what the way adds, and on seen states hold."""
    most = max(users for users, _ in rows)
    crowd, alone = rows[most, True], rows[min(users for users, _ in rows), True]
    yield goal(f"{most} people, round trip p95 in ms", quantile(crowd.total, 0.95), most=ROUND_TRIP)
    yield goal("1 person, overhead p50 in ms", quantile(alone.overhead, 0.5), most=_OVERHEAD[0])
    yield goal("1 person, overhead p95 in ms", quantile(alone.overhead, 0.95), most=_OVERHEAD[1])
    for (_, new), times in rows.items():
        if not new:
            yield goal("seen states, compute p95 in ms", quantile(times.compute, 0.95), most=_SEEN)


@contextlib.contextmanager
def portal_of(data_dir: Path) -> Iterator[tuple[Supervisor, Portal, dict[str, Any], dict[str, Any]]]:
    """A whole portal on a folder, somebody signed in, the model and an SAE to toggle; all of it ends with the block."""
    supervisor = Supervisor(data_dir, free_port(0))
    try:
        model_file, _ = assets.fetch(data_dir)
        supervisor.prepare()
        who = ["--username", "bench", "--email", "bench@example.org", "--staff"]
        supervisor.manage("ensure_user", *who, extra={"WORKBENCH_PASSWORD": _PASSWORD})
        supervisor.start()
        wait_for_web(supervisor)
        portal = Portal(supervisor.url, "bench", _PASSWORD)
        yield supervisor, portal, *prepare(portal, model_file, data_dir)
    finally:
        supervisor.stop()


def run(*, users: list[int], seconds: float, tokens: int, data_dir: Path) -> Rows:
    """Start the portal, measure new states with every number of people and seen states with one, stop it."""
    with portal_of(data_dir) as (_, portal, model, sae):
        return {
            (count, new): asyncio.run(
                measure(portal, model["id"], sae, users=count, seconds=seconds, tokens=tokens, new=new)
            )
            for count, new in [*((count, True) for count in users), (1, False)]
        }


def main() -> None:
    """``python -m benchmarks.toggle``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--seconds", type=float, default=40, help="of toggling with every number of people")
    parser.add_argument("--tokens", type=int, default=64, help="longest prompt")
    parser.add_argument(
        "--data-dir", type=Path, help="keep the portal's data here; default a temporary folder"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toggle-") as folder:
        rows = run(
            users=options.users,
            seconds=options.seconds,
            tokens=options.tokens,
            data_dir=(options.data_dir or Path(folder)).absolute(),
        )
    if options.json:
        print(json.dumps([{"users": users, "new": new, **vars(t)} for (users, new), t in rows.items()]))
    else:
        print(table(rows), *goals(rows), sep="\n")


if __name__ == "__main__":
    main()
