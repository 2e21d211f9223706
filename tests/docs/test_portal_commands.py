"""The commands of the documents that start a portal or work on one: on a fresh data folder, one after the other."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from microscope.errors import MicroscopeError
from microscope.remote import Workbench
from microscope.remote.adding import source_of
from tests.docs.conftest import environment
from tests.docs.examples import ROOT, python_blocks
from tests.running import Person, wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(900)]

UI = "microscope ui --model Qwen/Qwen3-0.6B --sae-dir sae_checkpoints/"
# The address stands for wherever the reader's portal is.
ADDRESS = "https://lab.example.org"
REMOTE = (
    f"microscope remote login {ADDRESS} --project Laboratory",
    "microscope remote add-model HuggingFaceTB/SmolLM2-135M-Instruct --name SmolLM2",
    "microscope remote import-corpus speeches.jsonl --name sotu",
    "microscope remote trace --model SmolLM2 --corpus sotu --name first --layers 15 --tokens 640k",
    'microscope remote train --recording first --name "SAE 15" --layer 15 --tokens 640k',
    'microscope remote export-sae "SAE 15" --format saelens --out for_saelens/',
    "microscope remote import-sae their_sae/ --model SmolLM2 --recording first --name theirs",
    "microscope remote export-project --out here/",
)
AFTERWARDS = (
    "microscope bundle unpack --path project.zip --out project/",
    "python manage.py backup FOLDER",
    "python manage.py upgrade",
    "python manage.py restore FOLDER",
)
ON_A_PORTAL = (UI, *REMOTE, *AFTERWARDS)


@dataclass
class Desk:
    """A folder in which somebody types, and the portal they started there."""

    folder: Path
    environment: dict[str, str]
    launcher: psutil.Popen | None = None
    url: str = ""
    password: str = ""

    def type(self, text: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command line as it stands, but for the portal's address."""
        argv = [sys.executable, *_program(shlex.split(text.replace(ADDRESS, self.url)))]
        return subprocess.run(
            argv, cwd=self.folder, env=self.environment, input=given, capture_output=True, text=True
        )

    def start(self) -> str:
        """Start the portal; returns what it printed by the time everything was there."""
        log = self.folder / "ui.log"
        argv = [sys.executable, *_program(shlex.split(UI))]
        with log.open("w") as stream:
            self.launcher = psutil.Popen(
                argv, cwd=self.folder, env=self.environment, stdout=stream, stderr=subprocess.STDOUT
            )

        def there() -> bool:
            assert self.launcher is not None
            assert self.launcher.poll() is None, log.read_text()
            return "Open the project Laboratory" in log.read_text()

        wait_for(there, 400, "for the model and its SAE")
        said = log.read_text()
        self.url = re.findall(r"The portal is at (\S+)", said)[0]
        for password in re.findall(r"sign in as admin / (\S+)\)", said):
            self.password = password
        return said

    def stop(self) -> int:
        """As a service manager does it, or Ctrl-C; the exit status."""
        assert self.launcher is not None
        self.launcher.send_signal(signal.SIGTERM)
        return int(self.launcher.wait(60))


def _program(argv: list[str]) -> list[str]:
    match argv:
        case ["microscope", *rest]:
            return ["-m", "microscope", *rest]
        case ["python", "manage.py", *rest]:
            return [str(ROOT / "manage.py"), *rest]
    raise AssertionError(argv)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, hub: Path, things: dict[str, Path]) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(things["sae_checkpoints"], folder / "sae_checkpoints")
    shutil.copytree(things["saes@smol"], folder / "their_sae")
    shutil.copy(things["speeches.jsonl"], folder)
    own = {"XDG_CONFIG_HOME": str(folder / "config"), "WORKBENCH_DATA_DIR": str(folder / "var")}
    made = Desk(folder, environment(hub) | own | {"OMP_NUM_THREADS": "1"})
    yield made
    if made.launcher is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            made.launcher.send_signal(signal.SIGTERM)
            made.launcher.wait(60)


def test_the_portal_starts_with_a_model_and_its_saes(desk: Desk) -> None:
    said = desk.start()
    assert "sae_checkpoints: att" in said  # attached, or attaching
    admin = Person(desk.url, "admin", desk.password)
    assert [project["name"] for project in admin.each("/projects")] == ["Laboratory"]
    [model] = admin.each("/models")
    assert (model["name"], model["reference"]) == ("Qwen3-0.6B", "Qwen/Qwen3-0.6B")
    assert model["resident"]["state"] == "ready"
    [sae] = admin.each("/saes")
    assert (sae["name"], sae["site"], sae["layer"], sae["state"]) == (
        "sae_checkpoints",
        "resid_post",
        10,
        "ready",
    )
    assert admin.post(f"/saes/{sae['id']}/attach")["state"] in ("attached", "attaching")


def test_a_second_portal_on_the_same_folder_is_refused(desk: Desk) -> None:
    done = desk.type("microscope ui")
    assert done.returncode == 1
    assert "Another portal runs on the data folder" in done.stderr


def test_a_second_start_finds_what_the_first_brought(desk: Desk) -> None:
    assert desk.stop() == 0
    said = desk.start()
    assert "sign in as" not in said
    admin = Person(desk.url, "admin", desk.password)
    assert len(list(admin.each("/models"))) == 1
    assert len(list(admin.each("/saes"))) == 1


def test_work_on_the_portal_from_a_script(desk: Desk) -> None:
    admin = Person(desk.url, "admin", desk.password)
    token = admin.post("/tokens", {"name": "script", "scopes": ["write", "jobs", "artifacts", "admin"]})[
        "secret"
    ]
    for text in REMOTE:
        done = desk.type(text, given=token + "\n")
        assert done.returncode == 0, (text, done.stdout, done.stderr)
    names = {kind: {row["name"] for row in admin.each(f"/{kind}")} for kind in ("models", "corpora", "saes")}
    assert names["models"] == {"Qwen3-0.6B", "SmolLM2"}
    assert names["corpora"] == {"sotu"}
    assert names["saes"] == {"sae_checkpoints", "SAE 15", "theirs"}
    assert (desk.folder / "for_saelens" / "cfg.json").is_file()
    block = python_blocks()["docs/how-to.md"].replace(ADDRESS, desk.url).replace("…", token)
    exec(compile(block, "docs/how-to.md", "exec"), {})
    with Workbench(desk.url, token) as lab:
        assert lab.find("saes", "SAE 15, again")


def test_take_the_project_elsewhere_and_keep_it(desk: Desk) -> None:
    assert desk.stop() == 0
    shutil.copy(desk.folder / "here" / "project.zip", desk.folder)
    for text in AFTERWARDS:
        if "restore" in text:  # into an empty installation
            (desk.folder / "var").rename(desk.folder / "before")
            assert desk.type("python manage.py migrate -v 0").returncode == 0
        done = desk.type(text)
        assert done.returncode == 0, (text, done.stdout, done.stderr)
    assert len(list((desk.folder / "project").rglob("sae.json"))) == 3  # brought along, trained, imported
    desk.start()
    admin = Person(desk.url, "admin", desk.password)
    assert {row["name"] for row in admin.each("/saes")} >= {"SAE 15", "theirs"}


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ("--sae-dir nothing_here", 2, "does not exist"),
        ("--sae-dir config", 2, "needs --model"),
        ("--model gpt2 --sae-dir config", 3, "no_sae"),
        ("--model ./nothing_here", 3, "no_such_model"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    desk: Desk, arguments: str, status: int, told: str
) -> None:
    (desk.folder / "config").mkdir(exist_ok=True)
    done = desk.type(f"microscope ui {arguments} --data-dir untouched")
    assert done.returncode == status
    assert told in done.stderr
    assert not (desk.folder / "untouched").exists()


def test_sources_of_models(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    assert source_of(str(tmp_path)) == ("folder", str(tmp_path))
    assert source_of(str(tmp_path / "m.gguf")) == ("gguf", str(tmp_path / "m.gguf"))
    assert source_of("gpt2") == ("hub", "gpt2")
    assert source_of("Qwen/Qwen3-0.6B") == ("hub", "Qwen/Qwen3-0.6B")
    for wrong in ("./missing", "/missing", "a/b/c", "missing.gguf", "~/missing-folder"):
        with pytest.raises(MicroscopeError) as caught:
            source_of(wrong)
        assert caught.value.code == "no_such_model"
