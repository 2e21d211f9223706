"""Environment variables: typed, documented, and refused with their name when they are wrong."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from workbench.settings.env import Env, broker_url, database_config, generated_secret

ROOT = Path(__file__).parents[2]


def test_types_and_defaults() -> None:
    env = Env({"N": "5", "F": "yes", "P": "/a:/b", "W": "a, b ,", "S": "0.5", "EMPTY": ""})
    assert env.integer("N", 1, "") == 5
    assert env.flag("F", False, "") is True
    assert env.paths("P", (), "", shown="") == (Path("/a"), Path("/b"))
    assert env.words("W", (), "") == ("a", "b")
    assert env.seconds("S", 1, "") == 0.5
    assert env.text("EMPTY", "default", "") == "default"
    assert env.integer("MISSING", 7, "") == 7


@pytest.mark.parametrize(
    ("method", "value"),
    [("integer", "x"), ("flag", "maybe"), ("seconds", "0"), ("seconds", "-1"), ("seconds", "x")],
)
def test_wrong_values_are_named(method, value) -> None:
    with pytest.raises(ImproperlyConfigured, match=f"THING='{value}'"):
        getattr(Env({"THING": value}), method)("THING", 1, "")


def test_secrets_from_files_and_never_shown(tmp_path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    env = Env({"KEY_FILE": str(tmp_path / "secret")})
    assert env.secret("KEY", "hunter2", "A key.") == "hush"
    assert "hunter2" not in env.reference_table()
    with pytest.raises(ImproperlyConfigured):
        Env({"KEY_FILE": "/nowhere"}).secret("KEY", "", "")


def test_generated_secret_is_kept_and_private(tmp_path) -> None:
    path = tmp_path / "new" / "key"
    first = generated_secret(path)
    assert len(first) >= 50
    assert generated_secret(path) == first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_databases() -> None:
    assert database_config("sqlite:////tmp/x.db")["NAME"] == "/tmp/x.db"
    assert database_config("sqlite:///x.db")["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    postgres = database_config("postgresql://me:p%40ss@host:5433/name?sslmode=require")
    assert (postgres["USER"], postgres["PASSWORD"], postgres["HOST"]) == ("me", "p@ss", "host")
    assert (postgres["PORT"], postgres["NAME"], postgres["OPTIONS"]) == (
        "5433",
        "name",
        {"sslmode": "require"},
    )
    with pytest.raises(ImproperlyConfigured):
        database_config("mysql://x")


def test_brokers() -> None:
    assert broker_url("redis://h:1/2") == "redis://h:1/2"
    assert broker_url("unix:///run/v.sock") == "redis+socket:///run/v.sock?virtual_host=0"
    assert broker_url("unix:///run/v.sock?db=3") == "redis+socket:///run/v.sock?virtual_host=3"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("WORKBENCH_", "DJANGO_", "DATABASE"))}
    return subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, cwd=ROOT, capture_output=True, text=True
    )


def test_production_refuses_to_start_without_its_secret(tmp_path) -> None:
    code = "import django; django.setup(); print('up')"
    common = {"DJANGO_SETTINGS_MODULE": "workbench.settings.prod", "WORKBENCH_DATA_DIR": str(tmp_path)}
    assert "WORKBENCH_SECRET_KEY" in run(code, **common).stderr
    assert "WORKBENCH_SECRET_KEY" in run(code, **common, WORKBENCH_SECRET_KEY="short").stderr
    good = {**common, "WORKBENCH_SECRET_KEY": "k" * 50}
    assert run(code, **good).stdout == "up\n"
    assert "WORKBENCH_DEBUG" in run(code, **good, WORKBENCH_DEBUG="1").stderr


def test_one_address_decides_hosts_origins_and_cookies(tmp_path) -> None:
    code = (
        "import django; django.setup(); from django.conf import settings as s;"
        "print(s.ALLOWED_HOSTS, s.CSRF_TRUSTED_ORIGINS, s.SESSION_COOKIE_SECURE)"
    )
    told = run(
        code,
        DJANGO_SETTINGS_MODULE="workbench.settings.dev",
        WORKBENCH_DATA_DIR=str(tmp_path),
        WORKBENCH_PUBLIC_URL="https://lab.example.org",
    ).stdout
    assert "lab.example.org" in told
    assert "https://lab.example.org" in told
    assert told.strip().endswith("True")


def test_the_documented_settings_are_those_of_the_code() -> None:
    """Regenerate with: python manage.py settings_reference > docs/settings.md"""
    code = "from django.core.management import execute_from_command_line as e; e(['manage.py', 'settings_reference'])"
    environment = {"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "workbench.settings.prod"}
    environment |= {"WORKBENCH_SECRET_KEY": "x" * 50, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == (ROOT / "docs" / "settings.md").read_text(), done.stderr


def test_reference_names_every_variable_the_code_reads(tmp_path) -> None:
    told = run(
        "from django.core.management import execute_from_command_line as e; e(['manage.py', 'settings_reference'])",
        DJANGO_SETTINGS_MODULE="workbench.settings.dev",
        WORKBENCH_DATA_DIR=str(tmp_path),
    ).stdout
    for name in (
        "DATABASE_URL",
        "REDIS_URL",
        "HF_TOKEN",
        "CUDA_VISIBLE_DEVICES",
        "SAE_CACHE_DIR",
        "ACTIVATION_DATA_DIR",
    ):
        assert f"`{name}`" in told
    rows = [line for line in told.splitlines() if line.startswith("| `")]
    assert all(len(line.split("|")[4].strip()) > 10 for line in rows)
    assert str(tmp_path) not in told  # defaults are described, not resolved on this machine
