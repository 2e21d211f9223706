"""What `docker compose up` would start, as far as it can be known without an engine: the files fit the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings

from tests.contracts.locks import pins
from workbench.settings import base
from worker import health

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
PROXY = (ROOT / "docker" / "nginx.conf").read_text(encoding="utf-8")
OURS = [name for name, service in SERVICES.items() if "build" in service]


def stage(name: str) -> str:
    """The lines of one stage of the Dockerfile."""
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return found[1]


def test_every_part_is_there() -> None:
    assert set(SERVICES) == {
        *("proxy", "web", "compute", "resident", "beat"),
        *("migrate", "valkey", "postgres"),
    }
    open_to_the_world = [name for name, service in SERVICES.items() if "ports" in service]
    assert open_to_the_world == ["proxy"]
    for name, service in SERVICES.items():
        assert name == "migrate" or service["healthcheck"]["test"], name
    for name, service in SERVICES.items():
        assert name == "migrate" or service["restart"] == "unless-stopped", name
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], (name, other)
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in COMPOSE["volumes"] or (ROOT / source).is_file(), volume


@pytest.mark.parametrize("name", OURS)
def test_variables_exist(name: str) -> None:
    known = {*base.env.variables, *(f"{variable}_FILE" for variable in base.env.variables)}
    given = set(SERVICES[name]["environment"])
    assert given - known == {"DJANGO_SETTINGS_MODULE"}
    assert {"DATABASE_URL", "REDIS_URL", "WORKBENCH_SECRET_KEY", "WORKBENCH_DATA_DIR"} <= given
    for key, value in SERVICES[name]["environment"].items():
        if "SECRET" in key or "PASSWORD" in str(value):
            assert ":?" in value, f"{key} must have no default"


@pytest.mark.parametrize("name", OURS)
def test_commands_exist(name: str) -> None:
    service = SERVICES[name]
    target = service["build"]["target"]
    default = re.search(r"^CMD (\[.*\])$", stage(target), re.MULTILINE)
    assert default is not None
    command = service.get("command") or yaml.safe_load(default[1])
    match command:
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["python", "manage.py", *_]:
            assert (ROOT / "manage.py").exists()
        case ["celery", "-A", "workbench", "worker" | "beat", *_]:
            pass
        case _:
            pytest.fail(f"{name} starts {command}")


@pytest.mark.parametrize("name", ["compute", "resident", "beat"])
def test_health_of_what_no_request_reaches(name: str) -> None:
    first, *command = SERVICES[name]["healthcheck"]["test"]
    assert (first, *command[:3]) == ("CMD", "python", "-m", "worker.health")
    assert command[3:] == [{"resident": "agent"}.get(name, name)]
    assert command[3] in health.ROLES


def test_only_what_computes_has_torch() -> None:
    targets = {name: SERVICES[name]["build"]["target"] for name in OURS}
    assert {name for name, target in targets.items() if target == "engine"} == {"compute", "resident"}
    for target, torch in (("web", False), ("engine", True)):
        [names] = re.findall(r"scripts/install.sh python ([\w ]+?)(?: &&|$)", stage(target), re.MULTILINE)
        locked = {name: pins(name) for name in names.split() if name != "torch"}
        assert ("torch" in names.split()) == torch
        assert any("psycopg" in pinned for pinned in locked.values())
        assert any("transformers" in pinned for pinned in locked.values()) == torch


def test_images_hold_the_code() -> None:
    copied = set(re.findall(r"^COPY (\w+) \w+$", stage("web"), re.MULTILINE))
    assert {"microscope", "worker", "workbench", "apps"} <= copied
    for name in (*copied, *["pyproject.toml", "README.md", "LICENSE", "manage.py"]):
        assert (ROOT / name).exists(), name
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert not copied & set(ignored)
    assert "USER workbench" in stage("web").rsplit("RUN", 1)[1]


def test_the_proxy_lets_through_what_the_portal_takes() -> None:
    limit = re.search(r"client_max_body_size (\d+)m;", PROXY)
    assert limit is not None
    assert int(limit[1]) * 2**20 == settings.WORKBENCH_BODY_BYTES
    assert "proxy_request_buffering off;" in PROXY
    assert SERVICES["web"]["expose"] == ["8000"]
    assert "server web:8000;" in PROXY
    assert SERVICES["web"]["environment"]["WORKBENCH_BEHIND_PROXY"] == "1"
