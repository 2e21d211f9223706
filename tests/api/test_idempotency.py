"""A request sent twice makes one thing, whichever kind of thing it makes."""

from __future__ import annotations

import pytest
from django.core.cache import cache

from apps.accounts.scopes import Scope
from apps.jobs.models import Job
from apps.patches.models import Patch
from apps.projects.models import Membership, Project
from apps.registry.models import Corpus, LanguageModel, Recording
from apps.saes.models import Sae
from tests.factories import MembershipFactory, SaeFactory, plan_for

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


# --- who may see the answer again ---------------------------------------------------------------------------


def starts(world) -> dict[str, dict]:
    """Requests that start jobs, by address; each names the project by what it is about."""
    return {
        "models": {"project": str(world.project.pk), "name": "once", "source": "hub", "reference": "a/b"},
        "recordings": {
            "model": str(world.model.pk),
            "corpus": str(world.corpus.pk),
            "name": "once",
            "params": {"layers": [1]},
        },
        "saes": {"recording": str(world.recording.pk), "name": "once", "params": {"layer": 1}},
        f"saes/{world.sae.pk}/evaluate": {"params": {}},
        f"saes/{world.sae.pk}/analyse": {"params": {}},
        f"saes/{world.sae.pk}/export": {"params": {"format": "saelens"}},
        f"recordings/{world.recording.pk}/export": {},
        f"projects/{world.project.pk}/export": {"params": {}},
        "pipelines": {
            "name": "once more",
            "recording": str(world.recording.pk),
            "train": {"layer": 2, "width": 64, "k": 4},
        },
        **{path: body for path, body in bodies(world).items() if path != "projects"},
    }


def test_whoever_was_removed_is_told_nothing_again(world, client_of) -> None:
    """Requests inside the project and one that made a project: a key opens no door that was closed since."""
    editor, everything = client_of("editor"), {**starts(world), "projects": {"name": "Once"}}
    for path, body in everything.items():
        assert editor.post(f"/api/v1/{path}", body, headers=ONCE).status_code < 300, path
    Membership.objects.filter(user=world.people["editor"]).delete()
    for path, body in everything.items():
        again = editor.post(f"/api/v1/{path}", body, headers=ONCE)
        assert again.status_code in (400, 404), (path, again.content)
        assert "once" not in again.content.decode().lower(), (path, again.content)


def test_a_token_bound_elsewhere_is_told_nothing_again(world, foreign, client_of, client_with) -> None:
    owner = world.people["owner"]
    MembershipFactory(project=foreign.project, user=owner, role="owner")
    everything = {**starts(world), "projects": {"name": "Once"}}
    for path, body in everything.items():
        assert client_of("owner").post(f"/api/v1/{path}", body, headers=ONCE).status_code < 300, path
    bound = client_with(owner, *Scope, project=foreign.project)
    for path, body in everything.items():
        again = bound.post(f"/api/v1/{path}", body, headers=ONCE)
        assert again.status_code in (400, 403, 404), (path, again.content)
    for path, body in starts(foreign).items():  # the same key for the same thing of its own project
        mine = bound.post(f"/api/v1/{path}", body, headers=ONCE)
        assert mine.status_code in (201, 202, 404, 422), (path, mine.content)
        assert str(world.project.pk) not in mine.content.decode()


def test_a_key_says_nothing_about_something_else(world, client_of) -> None:
    """Two SAEs, one key: the second request is not answered with the job of the first."""
    editor, other = client_of("editor"), SaeFactory(recording=world.recording)
    first = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {"params": {}}, headers=ONCE)
    again = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {"params": {}}, headers=ONCE)
    assert first.json()["job"]["id"] == again.json()["job"]["id"]
    second = editor.post(f"/api/v1/saes/{other.pk}/evaluate", {"params": {}}, headers=ONCE)
    assert (second.status_code, second.json()["errors"][0]["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("path", ["models", "corpora", "patches", "saes", "recordings", "pipelines"])
def test_what_was_deleted_since_is_not_announced_again(world, client_of, path) -> None:
    editor, body = client_of("editor"), starts(world)[path]
    made = editor.post(f"/api/v1/{path}", body, headers=ONCE).json()
    if path == "pipelines":
        Job.objects.filter(pipeline=made["pipeline"]["id"]).delete()
        Sae.objects.filter(pk=made["sae"]).delete()
    else:
        row = made.get(path.removesuffix("s")) or made
        rows = {"models": LanguageModel, "corpora": Corpus, "patches": Patch, "saes": Sae}
        rows.get(path, Recording).objects.filter(pk=row["id"]).delete()
    again = editor.post(f"/api/v1/{path}", body, headers=ONCE)
    assert (again.status_code, again.json()["errors"][0]["code"]) == (404, "not_found")
