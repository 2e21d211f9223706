"""The whole portal as a person starts it, with a tiny model, for tests that need real servers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.extension.page import install
from workbench.demo.portal import Portal, PortalError
from workbench.supervisor import free_port

ROOT = Path(__file__).parents[1]
PASSWORD = "a long enough password"
TRACE = {"layers": [1, 2], "tokens": 4000, "context_length": 32, "held_out": 0.2, "dtype": "float32"}
TRAIN = {"layer": 2, "width": 96, "k": 8, "tokens": 20_000, "batch_size": 200}


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, what: str = "") -> Any:
    """The first true answer of the condition, which is asked at least twice however slow it is."""
    deadline = time.monotonic() + seconds
    while True:
        late = time.monotonic() > deadline
        found = condition()
        if found:
            return found
        if late:
            raise AssertionError(f"waited {seconds:g} s in vain {what}")
        time.sleep(0.05)


class Person(Portal):
    """Somebody signed in, who may also take things back."""

    def patch(self, path: str, body: dict[str, Any]) -> Any:
        """PATCH below /api/v1."""
        return self.request("PATCH", f"/api/v1{path}", json=body)

    def delete(self, path: str) -> None:
        """DELETE below /api/v1."""
        self.request("DELETE", f"/api/v1{path}")

    def sign_out(self) -> None:
        """End the session, as the browser does it: the answer says 401 because nobody is signed in then."""
        path = "/_allauth/browser/v1/auth/session"
        assert self.http.delete(path).status_code == 401


@dataclass
class Site:
    """Broker, web, compute, beat, agent, under ``workbench.launch ui``."""

    folder: Path
    url: str
    launcher: psutil.Popen
    packages: Path | None = None
    known: dict[str, Person] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that belongs to the site."""
        return _environment(self.folder, self.packages)

    def manage(self, *arguments: str, **extra: str) -> str:
        """Run a management command on the site's data."""
        command = [sys.executable, "-m", "django", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment | extra, check=True, capture_output=True, text=True
        )
        return done.stdout

    def person(self, name: str) -> Person:
        """Somebody signed in; the account is made when it is first asked for."""
        if name not in self.known:
            self.manage(
                "ensure_user",
                "--username",
                name,
                "--email",
                f"{name}@example.org",
                WORKBENCH_PASSWORD=PASSWORD,
            )
            self.known[name] = Person(self.url, name, PASSWORD)
        return self.known[name]

    def resident(self, model: dict[str, Any]) -> psutil.Process:
        """The process that holds the model."""
        socket = f"m{model['id'].replace('-', '')[-12:]}.sock"

        def look() -> psutil.Process | None:
            for process in self.launcher.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    command = " ".join(process.cmdline())
                    if "worker.resident" in command and socket in command and alive(process):
                        return process
            return None

        found: psutil.Process = wait_for(look, 300, "for the resident")
        return found

    def processes(self) -> list[psutil.Process]:
        """All that run, the launcher excepted."""
        return [process for process in self.launcher.children(recursive=True) if alive(process)]

    def serves(self) -> bool:
        """Whether the web process answers, and its database and broker answer it."""
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=20).status_code == 200
        return False

    def stop(self) -> None:
        self.launcher.send_signal(signal.SIGTERM)
        try:
            self.launcher.wait(40)
        except psutil.TimeoutExpired:
            self.launcher.kill()


def alive(process: psutil.Process) -> bool:
    """Whether it still runs."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:  # it went between the two questions
        return False


def kill(process: psutil.Process) -> None:
    """``kill -9``; returns when it is dead, so that whoever looks next cannot take it for the one after it."""
    process.kill()
    wait_for(lambda: not alive(process), 30, f"for {process.pid} to die")


@dataclass
class Lab:
    """A project with one of everything, made by the portal's own jobs; alice owns it."""

    site: Site
    alice: Person
    project: dict[str, Any]
    model: dict[str, Any]
    corpus: dict[str, Any]
    recording: dict[str, Any]
    sae: dict[str, Any]

    @property
    def live(self) -> str:
        """Address of the model's socket."""
        return f"/ws/live/{self.model['id']}/"

    def wait_loaded(self) -> None:
        """Until the model is in memory."""
        path = f"/models/{self.model['id']}"
        wait_for(
            lambda: (self.alice.get(path)["resident"] or {}).get("state") == "ready", 600, "for the model"
        )

    def mend(self) -> None:
        """Undo what a failed test may have left behind, so that the next one finds the lab as it was made."""
        for process in self.site.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
        wait_for(self.site.serves, 300, "for the portal")
        project = self.project["id"]

        def ended() -> bool:
            active = [job for job in self.alice.each("/jobs", project=project) if not job["finished_at"]]
            for job in active:
                with contextlib.suppress(PortalError):  # it ended by itself
                    self.alice.post(f"/jobs/{job['id']}/cancel")
            return not active

        wait_for(ended, 300, "for the jobs to end")
        for graph in list(self.alice.each("/graphs", project=project)):
            self.alice.delete(f"/graphs/{graph['id']}")
        for kind, kept in (("saes", self.sae), ("recordings", self.recording), ("models", self.model)):
            for row in list(self.alice.each(f"/{kind}", project=project)):
                if row["id"] != kept["id"]:
                    self.alice.delete(f"/{kind}/{row['id']}")
        self.alice.post(f"/models/{self.model['id']}/load")
        self.wait_loaded()


def _environment(folder: Path, packages: Path | None) -> dict[str, str]:
    """The machine's environment without what the test runner put there, with a folder of installed packages."""
    dropped = ("WORKBENCH_", "DJANGO_", "PYTEST_", "DATABASE_URL", "REDIS_URL", "SAE_", "ACTIVATION_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "DJANGO_SETTINGS_MODULE": "workbench.settings.dev",
        "WORKBENCH_DATA_DIR": str(folder),
        "PYTHONPATH": os.pathsep.join(map(str, filter(None, (ROOT, packages)))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def start_site(folder: Path, packages: Path | None = None) -> Site:
    """The portal on a folder that offers one tiny model and one corpus; waits until it answers.

    Args:
        packages: folder of packages that are installed beside it.
    """
    from tests.tiny_models import make_corpus, make_model

    make_model("llama", folder / "models" / "tiny")
    make_corpus(folder / "corpora" / "words")
    port = free_port(0)
    log = folder / "launch.log"
    command = [sys.executable, "-m", "workbench.launch", "ui", "--data-dir", str(folder), "--port", str(port)]
    with log.open("ab") as stream:
        launcher = psutil.Popen(
            command, cwd=ROOT, env=_environment(folder, packages), stdout=stream, stderr=subprocess.STDOUT
        )
    made = Site(folder, f"http://127.0.0.1:{port}", launcher, packages)

    def serves() -> bool:
        assert launcher.poll() is None, log.read_text()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{made.url}/api/v1/healthz", timeout=20).status_code == 200
        return False

    try:
        wait_for(serves, 600, "for the portal")
    except BaseException:
        made.stop()
        raise
    return made


def make_lab(site: Site) -> Lab:
    """Record, train, evaluate, analyse, load: through the portal's own jobs."""
    alice = site.person("alice")
    project = alice.post("/projects", {"name": "Laboratory"})

    def finished(answer: dict[str, Any]) -> dict[str, Any]:
        alice.wait(answer["job"]["id"], lambda job: None)
        return answer

    of_project = {"project": project["id"]}
    model = finished(
        alice.post("/models", {**of_project, "name": "tiny", "source": "folder", "reference": "tiny"})
    )["model"]
    alice.post(f"/models/{model['id']}/load")
    corpus = alice.post("/corpora", {**of_project, "name": "words", "kind": "builtin", "reference": "words"})
    recording = finished(
        alice.post(
            "/recordings",
            {"model": model["id"], "corpus": corpus["id"], "name": "Blocks 1 and 2", "params": TRACE},
        )
    )["recording"]
    sae = finished(alice.post("/saes", {"recording": recording["id"], "name": "TopK 96", "params": TRAIN}))[
        "sae"
    ]
    for step in ("evaluate", "analyse"):
        finished(alice.post(f"/saes/{sae['id']}/{step}"))
    found = {name: alice.get(f"/{name}s/{made['id']}") for name, made in (("model", model), ("sae", sae))}
    recording = alice.get(f"/recordings/{recording['id']}")
    made = Lab(site, alice, project, found["model"], corpus, recording, found["sae"])
    made.wait_loaded()
    return made


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Started once for all tests that need it, with the package of docs/extending.md installed beside it."""
    folder = tmp_path_factory.mktemp("site")
    made = start_site(folder, install(folder / "extras"))
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def lab(site: Site) -> Lab:
    """Made once for all tests that need it; they change nothing in it but patches."""
    return make_lab(site)
