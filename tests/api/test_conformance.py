"""Generated requests to every operation of the API: none breaks it, and every answer is one the schema documents.

Schemathesis makes the requests from the committed schema: boundary values of every parameter and field, then random
valid and invalid ones. They are the same in every run. ``WORKBENCH_FUZZ_EXAMPLES`` asks for more per operation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import schemathesis
from django.conf import settings
from django.core.signals import request_finished, request_started
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from django.test import Client, override_settings
from django.urls import resolve
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    ignored_auth,
    negative_data_rejection,
    positive_data_acceptance,
)

from tests.api.routes import ROUTES
from tests.api.test_permissions import ids_in
from tests.conftest import World, build_world, place_files

pytestmark = [
    pytest.mark.postgres,
    pytest.mark.django_db,
    # Archives are made by asynchronous iterators, which a WSGI server has to consume at once.
    pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume asynchronous"),
]

ROOT = Path(__file__).parents[2]
EXAMPLES = int(os.environ.get("WORKBENCH_FUZZ_EXAMPLES") or 8)
TOKEN = "t" * 32  # any text of the right length is a CSRF token when cookie and header agree

config = SchemathesisConfig.from_dict(
    {
        "generation": {"deterministic": True, "max-examples": EXAMPLES, "database": "none"},
        "phases": {"stateful": {"enabled": False}},
    }
)
schema = schemathesis.openapi.from_dict(
    json.loads((ROOT / "apps/api/openapi.json").read_text(encoding="utf-8")), config=config
)
schema.app = get_wsgi_application()
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
EXCLUDED = [
    # Who may do what is the permission matrix's to test, with real people instead of a missing header.
    ignored_auth,
    # A request that fits the schema may still be refused: names are unique, models must be loaded, and the rules
    # between parameters of a job cannot be written in a schema.
    positive_data_acceptance,
    # Numbers in the place of texts, and texts of numbers in the place of numbers, are understood.
    negative_data_rejection,
]


class Stage:
    """A world with everything in it, and its owner signed in."""

    def __init__(self, world: World) -> None:
        self.world = world
        client = Client()
        client.force_login(world.people["owner"])
        self.cookies = {"sessionid": client.cookies["sessionid"].value, "csrftoken": TOKEN}
        self.headers = {"X-CSRFToken": TOKEN}

    def aim(self, case: schemathesis.Case) -> None:
        """Put ids of the world where there are invented ones: hardly any request would get past the door else.

        One invented id in four stays. What is no id at all stays as well: that is the point of it.
        """
        how = ROUTES[route_of(case.operation.path), case.operation.method.lower()]
        names = re.findall(r"{(\w+)}", case.operation.path)
        if names and all(aimed(case.path_parameters.get(name)) for name in names if name != "name"):
            case.path_parameters |= {
                name: str(value) for name, value in zip(names, how.kwargs(self.world).values(), strict=True)
            }
        for name, value in (case.query or {}).items():
            if name in THINGS and aimed(value):
                case.query[name] = str(getattr(self.world, THINGS[name]).pk)
        if how.body is not None and isinstance(case.body, (dict, list)):
            for path, value in ids_in(how.body(self.world)):
                put(case.body, path, value)


THINGS = {name: name for name in ("project", "model", "corpus", "recording", "sae", "patch", "pipeline")}
THINGS["subject"] = "sae"


def route_of(path: str) -> str:
    """Name of the route of a path of the schema."""
    filled = path.replace("{name}", "report.json")
    name = resolve(re.sub(r"{\w+}", "01900000-0000-7000-8000-000000000000", filled)).url_name
    assert name is not None
    return name


def aimed(value: Any) -> bool:
    """Whether a generated value is an id that is to be replaced."""
    try:
        return UUID(value).int % 4 != 0
    except (ValueError, AttributeError, TypeError):
        return False


def put(body: Any, path: tuple[Any, ...], value: str) -> None:
    """Set the value at a path where the body has an invented id."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        for key in path[:-1]:
            body = body[key]
        if aimed(body[path[-1]]):
            body[path[-1]] = value


@pytest.fixture(scope="module")
def stage(django_db_setup, django_db_blocker, tmp_path_factory) -> Iterator[Stage]:
    unlimited = override_settings(WORKBENCH_RATE_LIMIT="1000000/second")
    with django_db_blocker.unblock(), unlimited, transaction.atomic():
        # The transaction around everything must survive the end of a request.
        for moment in (request_started, request_finished):
            moment.disconnect(close_old_connections)
        place_files(tmp_path_factory.mktemp("files"), settings)
        yield Stage(build_world())
        transaction.set_rollback(True)
        for moment in (request_started, request_finished):
            moment.connect(close_old_connections)


@schema.parametrize()
def test_every_answer_is_documented(case: schemathesis.Case, stage: Stage) -> None:
    with transaction.atomic():
        stage.aim(case)
        response = case.call(headers=stage.headers, cookies=stage.cookies)
        transaction.set_rollback(True)
    case.validate_response(response, excluded_checks=EXCLUDED)
