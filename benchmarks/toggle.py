"""Round-trip time of a toggle: from sending a plan over a real WebSocket to having its answer.

Starts the whole portal on a folder of its own (daphne, Celery, Valkey, the resident worker), records and
trains a small SAE on the demo model through the job system, and lets people toggle at once. What is
measured is what a browser would wait for, on loopback; the time the resident worker computed and the time
the request waited for its turn are in every answer, and the rest is the overhead of the way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.demo import assets, patching
from workbench.demo.patching import quantile, scale_edit, wait_until_ready
from workbench.demo.portal import Portal, Socket
from workbench.supervisor import Supervisor, free_port, wait_for_web

LAYER = 15
_PASSWORD = "only-for-this-benchmark"
_WORDS = " ".join([patching.PROMPT] * 8).split()


@dataclass
class Times:
    """Milliseconds of every toggle: the round trip, of which computing and waiting for a turn."""

    total: list[float] = field(default_factory=list)
    compute: list[float] = field(default_factory=list)
    queued: list[float] = field(default_factory=list)

    @property
    def overhead(self) -> list[float]:
        """What neither the computation nor the queue explains."""
        return [t - c - q for t, c, q in zip(self.total, self.compute, self.queued, strict=True)]


def prepare(portal: Portal, model_file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A loaded model and an SAE of it: quickly trained, since its quality changes no time."""
    project = portal.post("/projects", {"name": "Benchmark"})
    body = {"project": project["id"], "name": "model", "source": "gguf", "reference": str(model_file)}
    made = portal.post("/models", body)
    portal.wait(made["job"]["id"], lambda job: None)
    model = made["model"]
    corpus = portal.post(
        "/corpora",
        {"project": project["id"], "name": "text", "kind": "builtin", "reference": assets.CORPUS_NAME},
    )
    trace = {"layers": [LAYER], "tokens": 20_000, "tokens_per_document": 896}
    recorded = portal.post(
        "/recordings", {"model": model["id"], "corpus": corpus["id"], "name": "acts", "params": trace}
    )
    portal.wait(recorded["job"]["id"], lambda job: None)
    train = {"layer": LAYER, "width": 4096, "k": 32, "tokens": 100_000}
    trained = portal.post("/saes", {"recording": recorded["recording"]["id"], "name": "sae", "params": train})
    portal.wait(trained["job"]["id"], lambda job: None)
    portal.post(f"/models/{model['id']}/load")
    return model, portal.get(f"/saes/{trained['sae']['id']}")


async def open_prompt(socket: Socket, tokens: int) -> None:
    """Open a session on a prompt of exactly so many tokens."""
    words = tokens
    while words > 0:
        await socket.send("open", prompt=" ".join(_WORDS[:words]))
        found = len((await socket.expect("opened"))["prompt"])
        if found == tokens:
            return
        words -= max(1, (found - tokens) // 2) if found > tokens else -1
    raise AssertionError(f"no beginning of the text has {tokens} tokens")


async def measure(
    portal: Portal, model: str, sae: dict[str, Any], *, users: int, toggles: int, tokens: int, every: float
) -> Times:
    """Let so many people toggle. Every state is new: the strength differs each time, as on a slider.

    Args:
        portal: signed in.
        model: id of the loaded model.
        sae: whose features are edited.
        users: how many sockets at once.
        toggles: how many of each.
        tokens: length of the prompt.
        every: seconds between one person's toggles; 0 sends the next as soon as the answer is there.
    """
    times = Times()
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(portal.socket(f"/ws/live/{model}/")) for _ in range(users)]
        features = []
        for socket in sockets:
            await wait_until_ready(socket)
            await open_prompt(socket, tokens)
            await socket.send("read_features", sae=sae["fingerprint"], top=1)
            features.append((await socket.expect("features"))["features"][0]["index"])

        async def person(number: int, socket: Socket) -> None:
            await asyncio.sleep(every * number / users)
            for turn in range(-3, toggles):
                started = time.perf_counter()
                plan = {"edits": [scale_edit(sae, features[number], 2 + (turn + 4) / 100)]}
                await socket.send("apply", rev=turn + 4, plan=plan)
                result = await socket.expect("result")
                assert result["rev"] == turn + 4
                assert result["receipt"]["reused"] == "computed", result["receipt"]
                spent = 1000 * (time.perf_counter() - started)
                if turn >= 0:  # the first few warm up
                    times.total.append(spent)
                    times.compute.append(result["timings"]["compute"])
                    times.queued.append(result["timings"]["queued"])
                if every:
                    await asyncio.sleep(max(0.0, every - spent / 1000))

        await asyncio.gather(*(person(n, s) for n, s in enumerate(sockets)))
    return times


def table(rows: list[tuple[str, Times]]) -> str:
    """Markdown: p50, p95 and p99 of each row in milliseconds."""
    lines = [
        "| toggles | round trip p50 | p95 | p99 | compute p50 | queue p50 | overhead p50 | p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, t in rows:
        numbers = [
            *(quantile(t.total, q) for q in (0.5, 0.95, 0.99)),
            quantile(t.compute, 0.5),
            quantile(t.queued, 0.5),
            *(quantile(t.overhead, q) for q in (0.5, 0.95)),
        ]
        lines.append(f"| {name} | " + " | ".join(f"{n:.1f}" for n in numbers) + " |")
    return "\n".join(lines)


def run(*, users: list[int], toggles: int, tokens: int, data_dir: Path) -> list[tuple[str, Times]]:
    """Start the portal, measure, stop it."""
    supervisor = Supervisor(data_dir, free_port(0))
    try:
        model_file, _ = assets.fetch(data_dir)
        supervisor.prepare()
        who = ["--username", "bench", "--email", "bench@example.org", "--staff"]
        supervisor.manage("ensure_user", *who, extra={"WORKBENCH_PASSWORD": _PASSWORD})
        supervisor.start()
        wait_for_web(supervisor)
        portal = Portal(supervisor.url, "bench", _PASSWORD)
        model, sae = prepare(portal, model_file)
        rows = []
        for count in users:
            every = 0.0 if count == 1 else 1.0
            times = asyncio.run(
                measure(portal, model["id"], sae, users=count, toggles=toggles, tokens=tokens, every=every)
            )
            name = "1 person, one after another" if count == 1 else f"{count} people, one a second each"
            rows.append((f"{name}, {tokens} tokens", times))
        return rows
    finally:
        supervisor.stop()


def main() -> None:
    """``python -m benchmarks.toggle``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--toggles", type=int, default=100, help="per person")
    parser.add_argument("--tokens", type=int, default=32, help="length of the prompt")
    parser.add_argument(
        "--data-dir", type=Path, help="keep the portal's data here; default a temporary folder"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toggle-") as folder:
        rows = run(
            users=options.users,
            toggles=options.toggles,
            tokens=options.tokens,
            data_dir=(options.data_dir or Path(folder)).absolute(),
        )
    if options.json:
        print(json.dumps({name: vars(times) for name, times in rows}))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
