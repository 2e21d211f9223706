"""``make demo``: start everything, run trace → train → evaluate → analyse as jobs, patch, explain, and keep serving."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbench.demo import assets, patching, provenance
from workbench.demo.portal import Portal, PortalError
from workbench.supervisor import Supervisor, free_port, wait_for_web

PROJECT, RECORDING, SAE, PATCH = "State of the Union", "Three blocks", "TopK 4k", "Amplified feature"
DIRECTION, GRAPH = "Talk of peace", "Where a feature comes from"
_LAYER, _BELOW = 15, (5, 10)
_TRACE = {"layers": [*_BELOW, _LAYER], "tokens": 200_000, "tokens_per_document": 896}
_TRAIN = {"layer": _LAYER, "width": 4096, "k": 32, "tokens": 2_000_000}
# SAEs that only explain need less text.
_TRAIN_BELOW = _TRAIN | {"tokens": 1_000_000}
_USERS = {"alice": False, "ben": False, "staff": True}


def demo(*, data_dir: Path, port: int, then: Callable[[Demonstration], None]) -> int:
    """Run the demonstration and what follows it; the exit status is 0 only if every step worked."""
    console = Console()
    started = time.monotonic()
    supervisor = Supervisor(data_dir, free_port(port))
    supervisor.stop_on_signals()
    try:
        shown = Demonstration(supervisor, console)
        shown.prepare()
        shown.run()
        console.print(shown.table(time.monotonic() - started))
        then(shown)
        return 0
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 0 if then is serve else 130
    except (PortalError, RuntimeError, TimeoutError) as error:
        console.print(f"[bold red]The demo failed:[/] {error}")
        console.print(f"Logs are in {data_dir / 'logs'}.")
        return 1
    finally:
        supervisor.stop()


def serve(shown: Demonstration) -> None:
    """Keep the portal running until Ctrl-C."""
    shown.console.print(f"\nServing at [bold]{shown.supervisor.url}[/] until Ctrl-C.")
    shown.supervisor.wait()


class Demonstration:
    """The steps, each of which uses what an earlier run left behind."""

    def __init__(self, supervisor: Supervisor, console: Console) -> None:
        self.supervisor, self.console = supervisor, console
        self.data_dir = supervisor.data_dir
        self.passwords: dict[str, str] = {}
        self.facts: dict[str, Any] = {}

    # --- setting up -----------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Model and text, servers, people."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with self.console.status("Fetching the demo model and its text"):
            self.model_file, _ = assets.fetch(self.data_dir)
        with self.console.status("Starting the servers"):
            self.supervisor.prepare()
            self._make_users()
            self.supervisor.start()
            wait_for_web(self.supervisor)
        self.console.print(
            f"The portal answers at [bold]{self.supervisor.url}[/] (alice / {self.passwords['alice']})."
        )

    def _make_users(self) -> None:
        """Accounts with passwords of their own, kept in a file only the owner can read."""
        path = self.data_dir / "demo.json"
        if path.exists():
            self.passwords = json.loads(path.read_text())
        else:
            self.passwords = {name: secrets.token_urlsafe(9) for name in _USERS}
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                json.dump(self.passwords, file)
        for name, staff in _USERS.items():
            options = ["--username", name, "--email", f"{name}@example.org"]
            self.supervisor.manage(
                "ensure_user",
                *options,
                *(["--staff"] if staff else []),
                extra={"WORKBENCH_PASSWORD": self.passwords[name]},
            )

    # --- the main job ---------------------------------------------------------------------------------

    def run(self) -> None:
        """Trace → train → evaluate → analyse → patch → toggle → explain."""
        self.alice = Portal(self.supervisor.url, "alice", self.passwords["alice"])
        project = self._project()
        model = self._model(project)
        self.alice.post(f"/models/{model['id']}/load")
        recording = self._recording(project, model)
        sae = self._measured(self._sae(project, recording, SAE, _TRAIN))
        below = [
            self._analysed(
                self._sae(project, recording, f"{SAE}, block {layer}", _TRAIN_BELOW | {"layer": layer})
            )
            for layer in _BELOW
        ]
        self.facts |= {"project": project, "recording": recording, "sae": sae}
        self._patch(project, model, sae)
        self._graph(project, model, sae, below)

    def _project(self) -> dict[str, Any]:
        found = self.alice.find("/projects", PROJECT)
        if found is None:
            found = self.alice.post(
                "/projects",
                {"name": PROJECT, "description": "SmolLM2-135M reading two centuries of speeches."},
            )
            self.alice.post(f"/projects/{found['id']}/members", {"user": "ben", "role": "editor"})
        return found

    def _model(self, project: dict[str, Any]) -> dict[str, Any]:
        found = self._ready("/models", assets.MODEL_NAME, project)
        if found is None:
            body = {
                "project": project["id"],
                "name": assets.MODEL_NAME,
                "source": "gguf",
                "reference": str(self.model_file),
            }
            made = self.alice.post("/models", body)
            self.follow(made["job"])
            found = made["model"]
        self.alice.find("/corpora", assets.CORPUS_NAME, project=project["id"]) or self.alice.post(
            "/corpora",
            {
                "project": project["id"],
                "name": assets.CORPUS_NAME,
                "kind": "builtin",
                "reference": assets.CORPUS_NAME,
            },
        )
        return found

    def _recording(self, project: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
        found = self._ready("/recordings", RECORDING, project)
        if found is None:
            corpus = self.alice.find("/corpora", assets.CORPUS_NAME, project=project["id"])
            assert corpus is not None
            made = self.alice.post(
                "/recordings",
                {"model": model["id"], "corpus": corpus["id"], "name": RECORDING, "params": _TRACE},
            )
            self.follow(made["job"])
            found = made["recording"]
        return self._get(f"/recordings/{found['id']}")

    def _sae(
        self, project: dict[str, Any], recording: dict[str, Any], name: str, params: dict[str, Any]
    ) -> dict[str, Any]:
        found = self._ready("/saes", name, project)
        if found is None:
            made = self.alice.post("/saes", {"recording": recording["id"], "name": name, "params": params})
            self.follow(made["job"])
            found = made["sae"]
        return self._get(f"/saes/{found['id']}")

    def _measured(self, sae: dict[str, Any]) -> dict[str, Any]:
        path = f"/saes/{sae['id']}"
        if sae["evaluation"] is None:
            self.follow(self.alice.post(f"{path}/evaluate")["job"])
        return self._analysed(self._get(path))

    def _analysed(self, sae: dict[str, Any]) -> dict[str, Any]:
        path = f"/saes/{sae['id']}"
        if sae["analysis"] is None:
            self.follow(self.alice.post(f"{path}/analyse")["job"])
        return self._get(path)

    def _patch(self, project: dict[str, Any], model: dict[str, Any], sae: dict[str, Any]) -> None:
        with self.console.status("Waiting for the resident model"):
            patch = self.alice.find("/patches", PATCH, project=project["id"])
            if patch is None:
                index, _ = asyncio.run(patching.choose_feature(self.alice, model["id"], sae))
                patch = self._saved(PATCH, model, patching.scale_edit(sae, index, patching.STRENGTH))
            direction = self.alice.find("/patches", DIRECTION, project=project["id"])
            if direction is None:
                edit = asyncio.run(patching.choose_direction(self.alice, model["id"], sae))
                direction = edit and self._saved(DIRECTION, model, edit)
            toggles, shown = asyncio.run(patching.measure_toggles(self.alice, model["id"], patch["plan"]))
        self.facts |= {"patch": patch, "direction": direction, "toggles": toggles, "shown": shown}

    def _graph(
        self,
        project: dict[str, Any],
        model: dict[str, Any],
        sae: dict[str, Any],
        below: list[dict[str, Any]],
    ) -> None:
        found = self._ready("/graphs", GRAPH, project)
        if found is None:
            patch = self.facts["direction"] or self.facts["patch"]
            index = patch["plan"]["edits"][0]["feature"]["index"]
            position = asyncio.run(provenance.strongest_position(self.alice, model["id"], sae, index))
            body = provenance.graph_body(GRAPH, model, sae, below, index, position)
            made = self.alice.post("/graphs", body)
            self.follow(made["job"])
            found = made["graph"]
        path = f"/graphs/{found['id']}"
        self.facts |= {"graph": self._get(path), "document": self._get(f"{path}/document")}

    def _saved(self, name: str, model: dict[str, Any], edit: dict[str, Any]) -> dict[str, Any]:
        body = {
            "model": model["id"],
            "name": name,
            "description": "Made by the demo.",
            "plan": {"edits": [edit]},
        }
        made: dict[str, Any] = self.alice.post("/patches", body)
        return made

    # --- helpers --------------------------------------------------------------------------------------

    def _get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.alice.get(path)
        return found

    def _ready(self, path: str, name: str, project: dict[str, Any]) -> dict[str, Any] | None:
        """A finished result of an earlier run, or one still being made, which is then waited for."""
        for found in self.alice.each(path, project=project["id"]):
            if found["name"] != name or found["state"] == "failed":
                continue
            if found["state"] == "pending":
                self.follow(self.alice.get(f"/jobs/{found['job']}")["job"])
            return found
        return None

    def follow(self, job: dict[str, Any]) -> None:
        """Show a job's progress in the terminal until it has succeeded."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<34}"),
            BarColumn(),
            TextColumn("{task.fields[amount]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as bars:
            task = bars.add_task(job["title"], total=None, amount="")

            def show(found: dict[str, Any]) -> None:
                amount = found["phase"] or found["state"]
                if found["rate"]:
                    amount += f"  {found['done']:,.0f} {found['unit']}  {found['rate']:,.0f}/s"
                total = found["total"] or None
                bars.update(task, completed=found["done"], total=total, amount=amount)

            self.alice.wait(job["id"], show)

    def table(self, seconds: float) -> Table:
        """What happened, in numbers."""
        recording, sae, shown, toggles = (self.facts[k] for k in ("recording", "sae", "shown", "toggles"))
        summary, metrics = recording["summary"], sae["evaluation"]["metrics"]
        edit = self.facts["patch"]["plan"]["edits"][0]
        table = Table(title="InterpretabilityWorkbench demo", show_header=False)
        rows = [
            ("Recorded", f"{summary['tokens']:,} tokens at {summary['tokens_per_second']:,.0f} tokens/s"),
            (
                "Held-out FVU",
                f"{metrics['fvu']:.4f} (sinks excluded; {metrics['fvu_all_tokens']:.4f} over all tokens)",
            ),
            ("CE recovered", f"{metrics['ce_recovered']:.4f}"),
            ("L0", f"{metrics['l0']:.1f}"),
            (
                "Dead latents",
                f"{metrics['dead_in_training']:.2%} in training, {metrics['dead_held_out']:.2%} on held-out text",
            ),
            (
                "Features analysed",
                f"{sae['analysis']['n_features']:,} on {sae['analysis']['tokens']:,} tokens",
            ),
            ("Patch", f"feature {edit['feature']['index']} × {edit['strength']:g} at {edit['site']}"),
            ("Effect", f"KL {shown['kl']:.4f} nats; " + _shifts(shown)),
            (
                "Toggle, computed",
                _times(toggles.computed) + f" (100 new states, {toggles.tokens}-token prompt)",
            ),
            ("Toggle, seen before", _times(toggles.switched)),
            *provenance.words(self.facts["graph"], self.facts["document"]),
            ("Took", f"{seconds:.0f} s"),
            ("Portal", self.supervisor.url),
            *((f"Login {name}", f"{name} / {self.passwords[name]}") for name in _USERS),
        ]
        for name, value in rows:
            table.add_row(f"[bold]{name}", value)
        return table


def _shifts(shown: dict[str, Any]) -> str:
    moved = sorted(shown["tokens"], key=lambda t: -abs(t["patched"] - t["base"]))[:3]
    return ", ".join(f"{t['text']!r} {t['base']:.1%} → {t['patched']:.1%}" for t in moved)


def _times(values: list[float]) -> str:
    return f"p50 {patching.quantile(values, 0.5):.1f} ms, p95 {patching.quantile(values, 0.95):.1f} ms"
