"""The package of docs/extending.md where no server runs: on the command line, among the routes, and what happens to
packages that are broken.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.extension.page import ROOT, install
from tests.tiny_models import make_corpus, make_model


def python(
    packages: Path, *arguments: str, given: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with a folder of installed packages."""
    dropped = ("WORKBENCH_", "DJANGO_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    path = os.pathsep.join((str(ROOT), str(packages)))
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        input=given,
        env=kept | {"PYTHONPATH": path, "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("extras"))


def test_the_command_line_has_all_of_it(packages, tmp_path) -> None:
    make_model("llama", tmp_path / "M")
    make_corpus(tmp_path / "corpus")
    commands = [
        "trace --model M --layer 2 --text corpus --tokens 4000 --context-length 32 --held-out 0.2 --dtype float32 --out r",
        "train --activations r --layer 2 --width 64 --k 8 --tokens 8000 --batch-size 200 --arch smooth"
        " --smooth-concavity 4 --out sae",
        "patch create --sae-path sae --feature 3 --kind cap --strength 0.25 --out patch.json",
        "patch apply --patch patch.json --sae-path sae --model M --prompt the_state --json",
        "features --sae-path sae --activations r --out features",
        "train --activations r --layer 2 --arch smooth --smooth-concavity 0 --out other",
    ]
    asked = json.dumps([{"folder": str(tmp_path), "argv": command.split()} for command in commands])
    done = python(packages, "-m", "tests.docs.runner", given=asked)
    assert done.returncode == 0, done.stderr
    *ran, refused = json.loads(done.stdout)
    assert [one["status"] for one in ran] == [0] * len(ran), ran
    assert (refused["status"] != 0, "smooth_concavity" in refused["err"]) == (True, True), refused

    told = json.loads((tmp_path / "sae" / "sae.json").read_text())
    assert (told["architecture"], told["training"]["params"]["smooth_concavity"]) == ("smooth", 4)
    assert told["training"]["held_out_fvu"] < 0.5
    described = [
        json.loads(line) for line in (tmp_path / "features" / "details.jsonl").read_text().splitlines()
    ]
    assert len(described) == 64
    spreads = [one["more"]["spread"] for one in described]
    assert all(spread is None or 0 < spread <= 1 for spread in spreads)
    assert any(spreads)


ROUTES = """
import django, io, json
django.setup()
from django.core.management import call_command
from tests.api.test_permissions import ROUTES, resolver_routes
new = {name: path for (name, method), path in resolver_routes().items() if (name, method) not in ROUTES}
schema = io.StringIO()
call_command("spectacular", format="openapi-json", validate=True, fail_on_warn=True, stdout=schema)
print(json.dumps([new, json.loads(schema.getvalue())["paths"]["/api/v1/lab_extras/dead-latents"]["get"]]))
"""


def test_the_permission_matrix_and_the_schema_see_its_routes(packages) -> None:
    done = python(packages, "-c", ROUTES, DJANGO_SETTINGS_MODULE="workbench.settings.test")
    assert done.returncode == 0, done.stderr
    new, listed = json.loads(done.stdout)
    path = "api/v1/lab_extras/dead-latents"
    assert new == {"dead-latents-list": path, "dead-latents-label": f"{path}/<uuid:pk>/label"}
    assert {"401", "403", "429"} < set(listed["responses"])
    assert {parameter["name"] for parameter in listed["parameters"]} == {"page", "page_size"}


APP = """
from django.apps import AppConfig
class Config(AppConfig):
    name = "broken_lab"
"""
KINDS = """
from apps.jobs.kinds import JobKind, engine
from microscope.params import InspectParams
KINDS = [JobKind(name={name!r}, title="Count", params_type=InspectParams, command=engine("inspect"),
                 prepare=lambda job, workdir: {{}})]
"""


@pytest.fixture
def app(tmp_path: Path):
    """Puts the app of a package into a folder, as if it had been installed."""

    def make(**modules: str) -> Path:
        for name, text in {"__init__": "", "apps": APP, **modules}.items():
            (tmp_path / "broken_lab").mkdir(exist_ok=True)
            (tmp_path / "broken_lab" / f"{name}.py").write_text(text)
        information = tmp_path / "broken_lab-2.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-lab\nVersion: 2.0\n")
        (information / "entry_points.txt").write_text(
            "[workbench.apps]\nbroken.lab-2 = broken_lab.apps:Config\n"
        )
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"apps": "import nothing_of_that_name"}, "No module named 'nothing_of_that_name'"),
        ({"apps": "Config = 7"}, "no AppConfig"),
        ({"models": "1 / 0"}, "division by zero"),
        ({"kinds": KINDS.format(name="train")}, "train is registered twice"),
        ({"urls": "from broken_lab import views"}, "cannot import name 'views'"),
    ],
)
def test_a_broken_app_stops_the_start_with_the_name_of_its_package(app, modules, said, tmp_path) -> None:
    done = python(app(**modules), "manage.py", "check", WORKBENCH_DATA_DIR=str(tmp_path / "data"))
    assert done.returncode != 0
    assert "The app of the package broken-lab 2.0 cannot be used" in done.stderr
    assert said in done.stderr
    assert "Correct or uninstall broken-lab." in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_names_packages_that_add_something_and_those_that_are_broken(
    app, packages, tmp_path
) -> None:
    whole = json.loads(python(packages, "-m", "microscope", "doctor", "--json").stdout)
    found = [finding["found"] for finding in whole if finding["subject"] == "lab-extras 1.0"]
    assert set(found) == {
        "microscope.architectures: smooth",
        "microscope.edits: cap",
        "microscope.analyses: spread",
        "workbench.apps: lab_extras",
    }
    broken = python(app(models="1 / 0"), "-m", "microscope", "doctor", "--json")
    assert broken.returncode == 1
    assert "The app of the package broken-lab 2.0 cannot be used: ZeroDivisionError" in broken.stdout


def test_the_doctor_says_what_django_finds_wrong_with_an_app(app) -> None:
    source = "from django.db import models\nclass Note(models.Model):\n    text = models.CharField(max_length=-1)\n"
    done = python(app(models=source), "-m", "microscope", "doctor", "--json")
    assert done.returncode == 1, done.stderr
    [found] = [finding for finding in json.loads(done.stdout) if finding["subject"] == "Portal"]
    assert "broken_lab.Note.text" in found["found"]


def test_kinds_of_jobs_of_a_package_are_kinds_of_the_portal(app) -> None:
    script = "import django; django.setup(); from apps.jobs.kinds import all_kinds; print(*(k.name for k in all_kinds()))"
    kinds = KINDS.format(name="count_latents")
    done = python(app(kinds=kinds), "-c", script, DJANGO_SETTINGS_MODULE="workbench.settings.test")
    assert "count_latents" in done.stdout.split(), done.stderr
