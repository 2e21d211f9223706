"""Strings that no database holds are the sender's mistake: a 400 that says where, wherever they come in."""

from __future__ import annotations

import json

import pytest
from django.test import Client

from apps.projects.models import Project
from apps.registry.models import Corpus

pytestmark = pytest.mark.django_db

NULL, HALF = "a\0b", "a\ud83db"


def post(client, address: str, body: object):
    return client.generic("POST", address, json.dumps(body), content_type="application/json")


@pytest.mark.parametrize(("text", "code"), [(NULL, "null"), (HALF, "surrogate")])
def test_in_a_name(world, client_of, text, code) -> None:
    response = post(client_of("editor"), "/api/v1/projects", {"name": text})
    assert response.status_code == 400, response.content
    [error] = response.json()["errors"]
    assert (error["code"], error["attr"]) == (f"{code}_characters_not_allowed", "name")
    assert (
        not Project.objects.filter(name__startswith="a")
        .exclude(pk__in=[world.project.pk])
        .filter(name__contains="b")
        .exists()
    )


@pytest.mark.parametrize("text", [NULL, HALF])
@pytest.mark.parametrize(
    ("body", "attr"),
    [
        (lambda text: {"params": {"text_field": text}}, "params.text_field"),
        (lambda text: {"params": {"deep": [{"er": text}]}}, "params.deep.0.er"),
        (lambda text: {"params": {text: 1}}, "params"),
        (lambda text: [text], "0"),
    ],
)
def test_deep_in_a_body(world, client_of, body, attr, text) -> None:
    """Parameters are stored as JSON, whose strings no field of the REST framework looks at."""
    for address in ("/api/v1/corpora/import", "/api/v1/patches", "/api/v1/uploads"):
        response = post(client_of("editor"), address, body(text))
        assert response.status_code == 400, (address, response.content)
        assert response.json()["errors"][0]["attr"] == attr
    assert not Corpus.objects.filter(state="pending").exists()


def test_whole_pairs_and_every_other_character_pass(world, client_of) -> None:
    response = post(client_of("editor"), "/api/v1/projects", {"name": "\U0001f600 ж\u2028é"})
    assert response.status_code == 201, response.content
    assert response.json()["name"] == "\U0001f600 ж\u2028é"


def test_nesting_is_no_server_error(world, client_of) -> None:
    response = client_of("editor").generic(
        "POST", "/api/v1/projects", "[" * 100_000 + "]" * 100_000, content_type="application/json"
    )
    assert response.status_code == 400


@pytest.mark.parametrize("query", ["search=%00", "search=%ED%A0%BD", "name=%00", "project=%00", "cursor=%00"])
def test_in_an_address(world, client_of, query) -> None:
    for resource in ("projects", "corpora", "models", "jobs", "saes", "patches"):
        response = client_of("editor").get(f"/api/v1/{resource}?{query}")
        assert response.status_code in (200, 400), (resource, response.content)


@pytest.mark.parametrize("text", [NULL, HALF])
def test_at_the_door(world, text) -> None:
    """The sign-in is not the REST framework's."""
    response = post(Client(), "/_allauth/browser/v1/auth/login", {"username": text, "password": text})
    assert response.status_code == 400, response.content
