"""Backup and restore: what comes back is what there was, row by row and byte by byte."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlencode

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connection

from apps.artifacts.models import Artifact
from apps.projects.models import Project
from tests.conftest import build_world
from tests.factories import ProjectFactory
from tests.skips import only_on_postgresql

ROOT = Path(__file__).parents[2]
# Each step of moving is a process of its own, and a busy machine takes its time to start them.
pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.postgres,
    pytest.mark.timeout(1200),
]


def rows() -> dict[str, list[dict]]:
    ours = [model for model in apps.get_models() if model.__module__.startswith("apps.")]
    return {model._meta.label: list(model._default_manager.order_by("pk").values()) for model in ours}


def contents() -> dict[str, bytes]:
    return {
        f"{artifact.pk}/{entry['path']}": (artifact.checkout() / entry["path"]).read_bytes()
        for artifact in Artifact.objects.all()
        for entry in artifact.files
    }


def test_everything_comes_back(files, tmp_path) -> None:
    build_world()
    before, bytes_before = rows(), contents()
    assert all(len(before[name]) for name in ("jobs.Job", "features.Feature", "patches.PatchVersion"))
    assert bytes_before
    call_command("backup", tmp_path / "b")
    assert (tmp_path / "b").stat().st_mode & 0o077 == 0  # it holds password hashes

    ProjectFactory(name="Made afterwards")
    with pytest.raises(CommandError, match="--replace"):
        call_command("restore", tmp_path / "b")
    shutil.rmtree(files / "artifacts")
    call_command("restore", tmp_path / "b", "--replace")
    assert rows() == before
    assert contents() == bytes_before
    assert not Project.objects.filter(name="Made afterwards").exists()


def test_what_is_refused(files, tmp_path, monkeypatch) -> None:
    build_world()
    with pytest.raises(CommandError, match="no complete backup"):
        call_command("restore", tmp_path)
    call_command("backup", tmp_path / "b")
    with pytest.raises(CommandError, match="already"):
        call_command("backup", tmp_path / "b")
    data = (tmp_path / "b" / "files.tar").read_bytes()
    (tmp_path / "b" / "files.tar").write_bytes(data[:-1] + b"x")
    before = rows()
    with pytest.raises(CommandError, match="not what was written"):
        call_command("restore", tmp_path / "b", "--replace")
    (tmp_path / "b" / "files.tar").write_bytes(data)
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("jobs.0001_initial", "jobs.9999_future"))
    with pytest.raises(CommandError, match="newer version"):
        call_command("restore", tmp_path / "b", "--replace")
    assert rows() == before


@dataclasses.dataclass
class Installation:
    """Another one, with a database of its own on the same kind of server."""

    folder: Path
    url: str

    def run(self, program: str, settings: str = "dev") -> str:
        """What a program prints that may use what the prelude defines, ``call`` as ``manage.py`` would."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WORKBENCH_", "DJANGO_"))}
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + program],
            cwd=ROOT,
            env=kept
            | {
                "DJANGO_SETTINGS_MODULE": f"workbench.settings.{settings}",
                "WORKBENCH_DATA_DIR": str(self.folder),
                "DATABASE_URL": self.url,
                "REDIS_URL": f"unix://{self.folder}/nobody.sock",
                "WORKBENCH_PASSWORD": "a long enough password",
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


PRELUDE = """
import django
django.setup()
from django.core.management import call_command as call

def people():
    from apps.accounts.models import User
    return sorted(User.objects.values_list("username", "id", "password"))

def show_rows():
    # a digest of every table, the same whichever database it is in
    import hashlib, json
    from django.apps import apps
    for model in apps.get_models():
        if model.__module__.startswith("apps."):
            rows = list(model._default_manager.order_by("pk").values())
            text = json.dumps(rows, default=str, sort_keys=True)
            print("ROWS", model._meta.label, len(rows), hashlib.sha256(text.encode()).hexdigest())

"""
OLD = """
call("migrate", interactive=False, verbosity=0)
call("ensure_user", username="ann", email="ann@example.org", staff=True)
before = people()
call("migrate", "live", "0001", interactive=False, verbosity=0)
call("migrate", "audit", "0001", interactive=False, verbosity=0)
call("upgrade")
assert people() == before and before[0][0] == "ann"
print("PEOPLE", before)
"""
FRESH = """
call("restore", {folder!r})
print("PEOPLE", people())
call("upgrade")
call("ensure_user", username="ben", email="ben@example.org")  # counters go on where the rows end
assert [name for name, *_ in people()] == ["ann", "ben"]
"""


@pytest.fixture
def install(tmp_path, transactional_db):
    made: list[str] = []

    def make(name: str) -> Installation:
        folder = tmp_path / name
        folder.mkdir()
        if connection.vendor == "sqlite":
            return Installation(folder, f"sqlite:///{folder}/db.sqlite3")
        known, database = connection.settings_dict, f"{connection.settings_dict['NAME']}_{name}"
        with connection.cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{database}"')
        made.append(database)
        return Installation(folder, f"postgresql://{known['USER']}@/{database}?{urlencode(known['OPTIONS'])}")

    yield make
    with connection.cursor() as cursor:
        for database in made:
            cursor.execute(f'DROP DATABASE "{database}" WITH (FORCE)')


def test_upgrade_of_an_older_database(install) -> None:
    """New code meets a database that lacks a table and a column it knows: first a backup, then the migrations."""
    old = install("old")
    said = old.run(OLD)
    later = [
        m
        for app in ("live", "audit")
        for m in (ROOT / "apps" / app / "migrations").glob("0*.py")
        if m.stem[:4] > "0001"
    ]
    assert f"{len(later)} migrations were applied" in said
    assert "The database is of this version." in said
    (folder,) = (old.folder / "backups").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert "live.0001_initial" in manifest["migrations"]
    assert "live.0002_seats" not in manifest["migrations"]
    restored = install("fresh").run(FRESH.format(folder=str(folder)))
    assert "already" in restored
    assert people_in(restored) == people_in(said)


def people_in(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("PEOPLE"))


OLD_WORLD = """
from tests.conftest import build_world
call("migrate", interactive=False, verbosity=0)
build_world()
call("migrate", "saes", "0001", interactive=False, verbosity=0)
call("backup", {folder!r})
"""
NEW_WORLD = """
call("restore", {folder!r})
from apps.saes.models import Sae
saes = list(Sae.objects.select_related("recording"))
assert saes and all(sae.model_id == sae.recording.model_id for sae in saes)
call("restore", {folder!r}, "--replace")  # from tables of the newest version back to those, and on again
assert Sae.objects.count() == len(saes)
call("upgrade")
"""


def test_an_old_backup_goes_through_the_migrations_that_followed(install, tmp_path) -> None:
    """SAEs got a model, filled in from their recordings and then required: the rows of the backup have none."""
    folder = str(tmp_path / "b")
    install("old").run(OLD_WORLD.format(folder=folder), "test")
    kept = json.loads((tmp_path / "b" / "manifest.json").read_text())["migrations"]
    assert "saes.0001_initial" in kept
    assert "saes.0002_sae_model" not in kept
    assert "already" in install("fresh").run(NEW_WORLD.format(folder=folder), "test")


WORLD = """
from pathlib import Path
from tests.conftest import build_world
call("migrate", interactive=False, verbosity=0)
build_world()
show_rows()
call("backup", Path({folder!r}))
"""
MOVED = """
from pathlib import Path
call("restore", Path({folder!r}))
show_rows()
call("backup", Path({following!r}))
"""


def tables(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("ROWS")]


@only_on_postgresql
def test_from_sqlite_to_postgresql_and_back(install, tmp_path) -> None:
    folders = [str(tmp_path / f"backup{number}") for number in range(3)]
    light, light_again = (tmp_path / name for name in ("light", "light_again"))
    for folder in (light, light_again):
        folder.mkdir()
    made = Installation(light, f"sqlite:///{light}/db.sqlite3").run(WORLD.format(folder=folders[0]), "test")
    before = tables(made)
    assert sum(int(line.split()[2]) > 0 for line in before) > 20
    heavy = install("heavy").run(MOVED.format(folder=folders[0], following=folders[1]), "test")
    assert tables(heavy) == before
    back = Installation(light_again, f"sqlite:///{light_again}/db.sqlite3")
    assert tables(back.run(MOVED.format(folder=folders[1], following=folders[2]), "test")) == before
    kinds = [json.loads((Path(folder) / "manifest.json").read_text())["database"] for folder in folders]
    assert kinds == ["sqlite", "postgresql", "sqlite"]
