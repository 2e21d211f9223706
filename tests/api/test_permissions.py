"""Every API route × every kind of person, token scope and foreign project, generated from the URL resolver and the
policy table."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from django.db import transaction
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from rest_framework.renderers import JSONRenderer
from rest_framework.test import APIClient

from apps.accounts.scopes import Scope
from apps.artifacts.models import Upload
from apps.core.ids import uuid7
from apps.projects.models import Project, Role
from apps.projects.policies import POLICY, SCOPES, Action
from tests.api.routes import (
    OWN,
    PERSONAL,
    PUBLIC,
    ROUTES,
    SESSION,
    SIGNED_IN,
    STAFF,
    Call,
    allowed,
    scopes_of,
)
from tests.conftest import PEOPLE
from tests.factories import MembershipFactory

METHODS = ("get", "post", "put", "patch", "delete")
DENIED = {401, 403, 404}


def resolver_routes() -> dict[tuple[str, str], str]:
    """Path by name and method of every route below /api/v1."""

    def walk(patterns, prefix: str) -> Iterator[tuple[tuple[str, str], str]]:
        for pattern in patterns:
            path = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, path)
            elif isinstance(pattern, URLPattern) and path.startswith("api/v1/"):
                view = pattern.callback
                actions = getattr(view, "actions", None)
                methods = actions or [m for m in METHODS if hasattr(view.view_class, m)]
                yield from (((pattern.name, method), path) for method in methods)

    return {key: path for key, path in walk(get_resolver().url_patterns, "") if key[1] in METHODS}


def test_every_route_is_in_the_matrix() -> None:
    routes = resolver_routes()
    missing = [
        f'    ("{name}", "{method}"): Call(Action.…, _of("…"), body=lambda w: {{…}}),  # {routes[name, method]}'
        for name, method in sorted(set(routes) - set(ROUTES))
    ]
    assert not missing, "Add to ROUTES in tests/api/routes.py:\n" + "\n".join(missing)
    gone = sorted(set(ROUTES) - set(routes))
    assert not gone, f"Remove from ROUTES in tests/api/routes.py, no such route: {gone}"
    silent = [key for key, how in ROUTES.items() if scopes_of(key[1], how) is None]
    assert not silent, f"These rows must say scope=Scope.… or scope=SESSION: {silent}"


def call(client: APIClient, name: str, method: str, how: Call, world, body: Any = None):
    url = reverse(name, kwargs=how.kwargs(world))
    if method == "get":
        return client.get(url, how.query(world))
    if how.raw is not None:
        content_type, data, headers = how.raw
        return client.generic(method.upper(), url, data, content_type=content_type, headers=headers)
    if body is None and how.body is not None:
        body = how.body(world)
    return client.generic(
        method.upper(),
        url,
        JSONRenderer().render(body) if body is not None else "",
        content_type="application/json",
    )


@contextlib.contextmanager
def undone() -> Iterator[None]:
    """Whatever happens to the database inside is undone, so that one world serves many tries."""
    with transaction.atomic():
        yield
        transaction.set_rollback(True)


@pytest.mark.postgres
@pytest.mark.parametrize(("name", "method"), sorted(ROUTES), ids=lambda value: value)
def test_matrix(name, method, world, client_of) -> None:
    how = ROUTES[name, method]
    for person in PEOPLE:
        client = client_of(person)
        with undone():
            if how.takes_upload and world.people[person] is not None:
                Upload.objects.filter(pk=world.upload.pk).update(created_by=world.people[person])
            response = call(client, name, method, how, world)
        status, said = response.status_code, (person, response.status_code, _text(response))
        assert status < 500, said
        if person in allowed(how.grant):
            assert status not in DENIED, said
            # The only refusals left are about state: nothing is resident in this world, a used model stays.
            assert status < 400 or status == 409, said
        elif person == "anonymous":
            assert status == 401, said
        elif person == "outsider" or how.grant in (OWN, PERSONAL):
            assert status == how.hidden, said
        else:
            assert status == 403, said


def _text(response) -> str:
    return "" if response.streaming else response.content.decode(errors="replace")[:500]


@pytest.mark.parametrize(("name", "method"), sorted(ROUTES), ids=lambda value: value)
def test_token_scopes(name, method, world, client_with) -> None:
    """A token passes with what the route needs, and with no single scope else."""
    how = ROUTES[name, method]
    person = world.people["staff" if how.grant == STAFF else "owner"]
    needed = scopes_of(method, how) or set()
    for scopes in {(scope,) for scope in Scope} | ({tuple(needed)} if len(needed) > 1 else set()):
        client = client_with(person, *scopes)
        with undone():
            response = call(client, name, method, how, world)
        said = (scopes, response.status_code, _text(response))
        if needed <= set(scopes) or how.grant == PUBLIC:
            assert response.status_code < 400 or response.status_code == 409, said
        else:
            code = response.json()["errors"][0]["code"]
            if how.grant == STAFF:  # without the admin scope they are the strangers they would be otherwise
                assert (response.status_code, code) in ((403, "scope_missing"), (404, "not_found")), said
                continue
            assert response.status_code == 403, said
            assert code == ("session_needed" if SESSION in needed else "scope_missing"), said


@pytest.mark.parametrize(
    ("name", "method"), [key for key, how in sorted(ROUTES.items()) if isinstance(how.grant, Action)]
)
def test_bound_tokens(name, method, world, foreign, client_with) -> None:
    """A token bound to a project passes there; to one bound elsewhere the project does not exist."""
    how, owner = ROUTES[name, method], world.people["owner"]
    MembershipFactory(project=foreign.project, user=owner, role="owner")
    # What such a token uploads is its project's; the world's upload came without one.
    Upload.objects.filter(pk=world.upload.pk).update(project=world.project)
    with undone():
        here = call(client_with(owner, *Scope, project=world.project), name, method, how, world)
    assert here.status_code < 400 or here.status_code == 409, _text(here)
    with undone():
        there = call(client_with(owner, *Scope, project=foreign.project), name, method, how, world)
    assert there.status_code == how.hidden, _text(there)


def ids_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Where ids (and fingerprints, which look like them) are in a body."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from ids_in(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from ids_in(inner, (*path, number))
    elif isinstance(value, str):
        with contextlib.suppress(ValueError):
            UUID(value)
            yield path, value


def replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    body = copy.deepcopy(body)
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return body


WITH_BODY = [key for key, how in sorted(ROUTES.items()) if how.body is not None]


@pytest.mark.parametrize(("name", "method"), WITH_BODY)
def test_foreign_keys_stay_in_the_project(name, method, world, foreign, client_of) -> None:
    """An id of another project inside a request is refused: to people who may not see it always, to people who may
    when something else in the request belongs to a project already."""
    how = ROUTES[name, method]
    assert how.body is not None
    own, other = how.body(world), how.body(foreign)
    paths = [path for path, value in ids_in(own) if dict(ids_in(other)).get(path) not in (None, value)]
    # an upload belongs to a person and says nothing about a project
    tied = bool(how.kwargs(world)) or len({path[0] for path in paths} - {"uploads"}) > 1
    both = world.people["owner"]
    for path in paths:
        body = replaced(own, path, dict(ids_in(other))[path])
        response = call(client_of("owner"), name, method, how, world, body)
        assert response.status_code in (400, 404, 422), (path, _text(response))
        if tied:
            with undone():
                MembershipFactory(project=foreign.project, user=both, role="owner")
                response = call(client_of("owner"), name, method, how, world, body)
            assert response.status_code in (400, 404, 422), (path, _text(response))


def test_foreign_keys_are_really_tried(make_world) -> None:
    """Guard of the test above: the fields known to hold ids are found in the bodies."""
    world = make_world()
    found = {(key[0], *path) for key in WITH_BODY for path, _ in ids_in(ROUTES[key].body(world))}
    assert {
        ("recording-list", "model"),
        ("recording-list", "corpus"),
        ("sae-list", "recording"),
        ("patch-list", "plan", "edits", 0, "feature", "sae"),
    } <= found


@pytest.mark.parametrize(
    ("name", "method"), [k for k, c in sorted(ROUTES.items()) if c.grant not in (PUBLIC, SIGNED_IN)]
)
def test_what_does_not_exist_looks_like_what_is_hidden(name, method, world, client_of) -> None:
    """An outsider learns nothing from the difference between a foreign id and an invented one."""
    how = ROUTES[name, method]
    client = client_of("outsider")
    hidden = call(client, name, method, how, world)
    for thing in (
        world.project,
        world.model,
        world.recording,
        world.sae,
        world.feature,
        world.patch,
        world.graph,
    ):
        thing.pk = uuid7()
    for thing in (
        *(world.job, world.failed_job, world.artifact, world.evaluation, world.corpus, world.upload),
        *(world.pipeline, world.broken_pipeline, world.webhook),
        *(world.export, world.blocked, world.adapter),
    ):
        thing.pk = uuid7()
    missing = call(client, name, method, how, world)
    assert missing.status_code == hidden.status_code
    if hidden.status_code == 404:
        assert missing.json() == hidden.json()
    else:
        strip = [{**error, "detail": ""} for error in hidden.json()["errors"]]
        assert [{**error, "detail": ""} for error in missing.json()["errors"]] == strip


def test_fixture_is_not_vacuous(world, foreign, client_of) -> None:
    """If the world were empty, hiding everything would pass every test above."""
    for name in ("project", "model", "corpus", "recording", "sae", "evaluation", "patch", "job"):
        listed = client_of("viewer").get(reverse(f"{name}-list")).json()
        mine, theirs = getattr(world, name).pk, getattr(foreign, name).pk
        ids = {row["id"] for row in listed["results"]}
        assert str(mine) in ids
        assert str(theirs) not in ids
        staff_ids = {row["id"] for row in client_of("staff").get(reverse(f"{name}-list")).json()["results"]}
        assert {str(mine), str(theirs)} <= staff_ids


def test_own_job_can_be_cancelled_by_an_editor_but_not_a_colleagues(world, editor) -> None:
    from tests.factories import JobFactory

    own = JobFactory(project=world.project, created_by=world.people["editor"])
    assert editor.post(reverse("job-cancel", kwargs={"pk": own.pk})).status_code == 200
    assert editor.post(reverse("job-cancel", kwargs={"pk": world.job.pk})).status_code == 403


def test_viewer_who_became_viewer_cannot_control_their_old_job(world, client_of) -> None:
    from tests.factories import JobFactory

    old = JobFactory(project=world.project, created_by=world.people["viewer"])
    assert client_of("viewer").post(reverse("job-cancel", kwargs={"pk": old.pk})).status_code == 403


def test_roles_grow(world) -> None:
    assert POLICY[Role.VIEWER] < POLICY[Role.EDITOR] < POLICY[Role.OWNER]
    assert POLICY[Role.OWNER] == set(Action) == set(SCOPES)


def test_inactive_user_sees_nothing(world, client_of) -> None:
    user = world.people["owner"]
    assert Project.objects.visible_to(user).count() == 1
    user.is_active = False
    assert Project.objects.visible_to(user).count() == 0


def test_changes_need_the_csrf_token(world) -> None:
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(world.people["owner"])
    url = reverse("project-detail", kwargs={"pk": world.project.pk})
    assert client.patch(url, {"name": "x"}).status_code == 403
    client.get("/")
    token = client.cookies["csrftoken"].value
    assert client.patch(url, {"name": "x"}, headers={"X-CSRFToken": token}).status_code == 200
