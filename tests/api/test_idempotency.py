"""A request sent twice makes one thing, whichever kind of thing it makes."""

from __future__ import annotations

import pytest
from django.core.cache import cache

from apps.patches.models import Patch
from apps.projects.models import Project
from apps.registry.models import Corpus
from tests.factories import plan_for

ONCE = {"Idempotency-Key": "k1"}


@pytest.fixture(autouse=True)
def _empty_cache() -> None:
    cache.clear()


def bodies(world) -> dict[str, dict]:
    project = str(world.project.pk)
    return {
        "projects": {"name": "Once"},
        "corpora": {"project": project, "name": "once", "kind": "builtin", "reference": "words"},
        "patches": {"model": str(world.model.pk), "name": "once", "plan": plan_for(world.sae)},
    }


@pytest.mark.parametrize(("path", "model"), [("projects", Project), ("corpora", Corpus), ("patches", Patch)])
def test_the_answer_of_the_first_is_given_again(world, client_of, path, model) -> None:
    editor, body = client_of("editor"), bodies(world)[path]
    before = model.objects.count()
    first = editor.post(f"/api/v1/{path}", body, headers=ONCE)
    again = editor.post(f"/api/v1/{path}", body, headers=ONCE)
    assert (first.status_code, again.status_code) == (201, 201), (first.content, again.content)
    assert first.json() == again.json()
    assert first.get("ETag") == again.get("ETag")
    assert (first.get("Idempotent-Replayed"), again["Idempotent-Replayed"]) == (None, "true")
    assert model.objects.count() == before + 1


def test_a_key_belongs_to_one_request_of_one_person(world, client_of) -> None:
    editor, owner = client_of("editor"), client_of("owner")
    assert editor.post("/api/v1/projects", {"name": "A"}, headers=ONCE).status_code == 201
    other = editor.post("/api/v1/projects", {"name": "B"}, headers=ONCE)
    assert (other.status_code, other.json()["errors"][0]["code"]) == (422, "idempotency_key_reused")
    assert owner.post("/api/v1/projects", {"name": "B"}, headers=ONCE).status_code == 201
    assert editor.post("/api/v1/corpora", bodies(world)["corpora"], headers=ONCE).status_code == 201


def test_a_refusal_is_not_remembered(client_of) -> None:
    editor = client_of("editor")
    assert editor.post("/api/v1/projects", {"name": ""}, headers=ONCE).status_code == 400
    assert editor.post("/api/v1/projects", {"name": "Now"}, headers=ONCE).status_code == 201


def test_the_same_request_at_the_same_time_waits_its_turn(client_of, monkeypatch) -> None:
    editor, seen = client_of("editor"), []

    def meanwhile(**values):
        seen.append(editor.post("/api/v1/projects", {"name": "Twice"}, headers=ONCE))
        return made(**values)

    from apps.projects import services

    made = services.create_project
    monkeypatch.setattr(services, "create_project", meanwhile)
    assert editor.post("/api/v1/projects", {"name": "Twice"}, headers=ONCE).status_code == 201
    assert (seen[0].status_code, seen[0].json()["errors"][0]["code"]) == (409, "request_in_progress")
    assert Project.objects.filter(name="Twice").count() == 1
