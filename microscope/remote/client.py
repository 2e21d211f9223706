"""The portal as Python objects."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec

from microscope.errors import Cancelled, MicroscopeError
from microscope.progress import SILENT, Progress
from microscope.remote import transfers
from microscope.remote.connection import Connection
from microscope.remote.records import Artifact, Event, File, Item, Job

_FIRST_LOOK, _LONGEST_LOOK = 0.3, 3.0
# What of a project has a name.
NAMED = ("models", "corpora", "recordings", "saes", "patches", "adapters")

Params = Mapping[str, Any]


class Workbench:
    """A portal, with a person's API token.

    Everywhere an object is wanted, its id is; :meth:`find` gives the id of a name. A request that the network
    breaks is tried ``attempts`` times in all.

    Raises:
        MicroscopeError: from every method, with the portal's code, sentence and hint; ``unreachable``.
    """

    def __init__(
        self, url: str, token: str, *, attempts: int = 5, transport: httpx.BaseTransport | None = None
    ) -> None:
        self.connection = Connection(url, token, attempts=attempts, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    # --- looking ------------------------------------------------------------------------------------

    def me(self) -> dict[str, Any]:
        """Who the token belongs to."""
        found: dict[str, Any] = self.connection.get("me")
        return found

    def projects(self) -> list[Item]:
        return self._items("projects")

    def items(self, kind: str, project: str) -> list[Item]:
        """What a project has of ``models``, ``corpora``, ``recordings``, ``saes``, ``patches`` or ``adapters``."""
        return self._items(kind, project=project)

    def jobs(self, project: str | None = None, *, active: bool | None = None) -> list[Job]:
        """Jobs, newest first."""
        wanted = None if active is None else str(active).lower()
        rows = self.connection.pages("jobs", project=project, active=wanted)
        return [msgspec.convert(row, Job) for row in rows]

    def job(self, job: str) -> Job:
        return msgspec.convert(self.connection.get(f"jobs/{job}")["job"], Job)

    def result(self, job: str) -> dict[str, Any]:
        """What a finished job found."""
        found: dict[str, Any] = self.connection.get(f"jobs/{job}")["result"]
        return found

    def find(self, kind: str, name: str, *, project: str | None = None) -> str:
        """The id of a name; an id is itself.

        Raises:
            MicroscopeError: ``not_found``, or ``ambiguous_name``.
        """
        try:
            return str(uuid.UUID(name))
        except ValueError:
            pass
        found = [item for item in self._items(kind, project=project) if item.name == name]
        if len(found) == 1:
            return found[0].id
        word = kind.removesuffix("s")
        if not found:
            raise MicroscopeError(
                "not_found", f"There is no {word} called '{name}'.", f"See `microscope remote list {kind}`."
            )
        raise MicroscopeError(
            "ambiguous_name", f"{len(found)} of the {kind} are called '{name}'.", "Give the id, or --project."
        )

    def _items(self, path: str, **query: Any) -> list[Item]:
        return [msgspec.convert(row, Item) for row in self.connection.pages(path, **query)]

    # --- work ---------------------------------------------------------------------------------------

    def record(
        self, *, model: str, corpus: str | Sequence[tuple[str, float]], name: str, params: Params
    ) -> Job:
        """Record a model's activations on a corpus, or on several mixed by their weights."""
        if isinstance(corpus, str):
            text: Params = {"corpus": corpus}
        else:
            text = {"mixture": [{"corpus": one, "weight": weight} for one, weight in corpus]}
        return self._started("recordings", {"model": model, **text, "name": name, "params": params})

    def train(self, *, recording: str, name: str, params: Params) -> Job:
        """Train an SAE on a recording; the job of the first, when several are asked for."""
        return self._started("saes", {"recording": recording, "name": name, "params": params})

    def evaluate(self, sae: str, params: Params | None = None, *, recording: str | None = None) -> Job:
        """Measure an SAE on held-out text. An imported SAE without a recording needs one."""
        return self._started(f"saes/{sae}/evaluate", {"recording": recording, "params": params or {}})

    def analyse(self, sae: str, params: Params | None = None, *, recording: str | None = None) -> Job:
        """Find out what an SAE's features do. An imported SAE without a recording needs one."""
        return self._started(f"saes/{sae}/analyse", {"recording": recording, "params": params or {}})

    def cancel(self, job: str) -> Job:
        return msgspec.convert(self.connection.post(f"jobs/{job}/cancel"), Job)

    def retry(self, job: str) -> Job:
        return msgspec.convert(self.connection.post(f"jobs/{job}/retry"), Job)

    def _started(self, path: str, body: Params) -> Job:
        return msgspec.convert(self.connection.post(path, body)["job"], Job)

    def follow(self, job: str, progress: Progress = SILENT) -> Job:
        """Wait until a job has ended, telling its log and its progress.

        Raises:
            MicroscopeError: the job's own error when it failed.
            Cancelled: somebody cancelled it.
        """
        told = 0
        now = self.job(job)
        while not now.ended:
            if now.state == "running" and now.phase:
                told, now = self._follow_phase(now, progress, told)
                continue
            told = self._tell(job, progress, told)
            time.sleep(_FIRST_LOOK)
            now = self.job(job)
        self._tell(job, progress, told)
        if now.state == "cancelled":
            raise Cancelled
        if now.error is not None:
            raise MicroscopeError(now.error.code, now.error.message, now.error.hint)
        return now

    def _follow_phase(self, now: Job, progress: Progress, told: int) -> tuple[int, Job]:
        phase, pause = now.phase, _FIRST_LOOK
        with progress.phase(phase, now.total or 0.0, now.unit, done=now.done):
            while now.phase == phase and now.state == "running":
                told = self._tell(now.id, progress, told)
                progress.advance(now.done, {k: v for k, v in now.metrics.items() if v is not None})
                time.sleep(pause)
                pause = min(_LONGEST_LOOK, pause * 1.3)
                now = self.job(now.id)
            progress.advance(now.done if now.phase == phase else now.total or 0.0, final=True)
        return told, now

    def _tell(self, job: str, progress: Progress, after: int) -> int:
        for event in self._events(job, after):
            after = event.seq
            progress.log(event.message, event.level)
        return after

    def _events(self, job: str, after: int) -> Iterator[Event]:
        rows = self.connection.get(f"jobs/{job}/events", after=after, kind="log")["events"]
        return (msgspec.convert(row, Event) for row in rows)

    # --- files --------------------------------------------------------------------------------------

    def upload(self, path: str | Path, progress: Progress = SILENT) -> list[str]:
        """Send a file or a folder; what an earlier, cut transfer had sent is not sent again."""
        return transfers.upload(self.connection, Path(path), progress)

    def import_sae(
        self,
        path: str | Path,
        *,
        model: str,
        name: str,
        recording: str | None = None,
        params: Params | None = None,
        progress: Progress = SILENT,
    ) -> Job:
        """Upload an SAE of any known format; a job tests it on real activations."""
        body = {"model": model, "recording": recording, "name": name, "params": params or {}}
        return self._started("saes/import", {**body, "uploads": self.upload(path, progress)})

    def import_corpus(
        self,
        path: str | Path,
        *,
        project: str,
        name: str,
        params: Params | None = None,
        progress: Progress = SILENT,
    ) -> Job:
        """Upload a text; a job reads all of it before it can be recorded on."""
        body = {"project": project, "name": name, "params": params or {}}
        return self._started("corpora/import", {**body, "uploads": self.upload(path, progress)})

    def import_recording(
        self, path: str | Path, *, model: str, name: str, progress: Progress = SILENT
    ) -> Job:
        """Upload a recording of a model, as a folder or an archive; a job looks at every value of it."""
        body = {"model": model, "name": name, "uploads": self.upload(path, progress)}
        return self._started("recordings/import", body)

    def export_recording(self, recording: str) -> Job:
        """Pack a recording into one archive; then :meth:`download` the job's artifact."""
        return self._started(f"recordings/{recording}/export", {})

    def import_adapter(self, path: str | Path, *, model: str, name: str, progress: Progress = SILENT) -> Job:
        """Upload a LoRA adapter; a job checks it and makes a patch of it."""
        body = {"model": model, "name": name, "uploads": self.upload(path, progress)}
        return self._started("adapters", body)

    def export_sae(self, sae: str, params: Params) -> Job:
        """Write an SAE for another library; then :meth:`download` the job's artifact."""
        return self._started(f"saes/{sae}/export", {"params": params})

    def export_patch(
        self, patch: str, *, target: str, recording: str | None = None, params: Params | None = None
    ) -> tuple[str, Job]:
        """Turn a patch into files another program loads: the export's id and its job."""
        body = {"target": target, "recording": recording, "params": params or {}}
        made = self.connection.post(f"patches/{patch}/export", body)
        return made["export"]["id"], msgspec.convert(made["job"], Job)

    def follow_export(self, export: str, progress: Progress = SILENT) -> str:
        """Wait for an export's certificate: ``passed``, ``blocked`` or ``overridden``.

        Raises:
            MicroscopeError: the certificate could not be measured.
        """
        while True:
            found = self.connection.get(f"exports/{export}")
            newest = found["certificate"]
            if newest is not None and newest["job"]:
                self.follow(newest["job"], progress)
                return str(self.connection.get(f"exports/{export}")["gate"])
            time.sleep(_FIRST_LOOK)

    def export_project(self, project: str, params: Params | None = None) -> Job:
        """Pack a project into one archive; then :meth:`download` the job's artifact."""
        return self._started(f"projects/{project}/export", {"params": params or {}})

    def import_project(self, path: str | Path, *, name: str, progress: Progress = SILENT) -> Job:
        """Upload a bundle; a job fills a new project with it, whose id is the job's ``project``."""
        return self._started("projects/import", {"name": name, "uploads": self.upload(path, progress)})

    def artifact(self, artifact: str) -> Artifact:
        return msgspec.convert(self.connection.get(f"artifacts/{artifact}"), Artifact)

    def download(self, artifact: str, out: str | Path, progress: Progress = SILENT) -> list[Path]:
        """Fetch all files of an artifact, continuing a cut transfer, checked by SHA-256."""
        files = self.artifact(artifact).files
        return transfers.download(self.connection, f"artifacts/{artifact}/files", files, Path(out), progress)

    def download_export(self, export: str, out: str | Path, progress: Progress = SILENT) -> list[Path]:
        """Fetch an export's files, which its certificate must have let out."""
        found = self.connection.get(f"exports/{export}")
        files = msgspec.convert(found["files"], list[File])
        return transfers.download(self.connection, f"exports/{export}/files", files, Path(out), progress)
