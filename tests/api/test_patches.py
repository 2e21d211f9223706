"""Patches: plans are checked against model and SAEs, nothing is ever lost."""

from __future__ import annotations

import json

import pytest

from apps.audit.models import AuditEvent
from apps.patches.models import Patch
from tests.factories import MembershipFactory, RecordingFactory, SaeFactory, plan_for


def error(response) -> dict:
    return response.json()["errors"][0]


def create(client, world, plan, **values):
    return client.post("/api/v1/patches", {"model": str(world.model.pk), "name": "p", "plan": plan, **values})


def test_create_shows_plan_version_and_fingerprint(world, editor) -> None:
    response = create(editor, world, plan_for(world.sae, 5), description="d")
    assert response.status_code == 201
    patch = response.json()
    assert response["ETag"] == '"1"'
    assert (patch["version"], patch["enabled"], patch["created_by"]) == (
        1,
        True,
        world.people["editor"].username,
    )
    assert len(patch["fingerprint"]) == 32
    assert patch["plan"]["edits"][0]["feature"] == {"sae": world.sae.fingerprint, "index": 5}
    assert AuditEvent.objects.filter(action="patch.created", target_id=patch["id"]).exists()


def test_same_edits_same_fingerprint(world, editor) -> None:
    one = create(editor, world, plan_for(world.sae, 5)).json()
    two = create(editor, world, plan_for(world.sae, 5), name="q").json()
    other = create(editor, world, plan_for(world.sae, 6), name="r").json()
    assert one["fingerprint"] == two["fingerprint"] != other["fingerprint"]


@pytest.mark.parametrize(
    ("edit", "status", "code"),
    [
        ({"site": "resid_post.4"}, 422, "layer_out_of_range"),
        ({"site": "resid_post.1"}, 422, "wrong_site"),
        ({"site": "mlp_out.2"}, 422, "site_not_editable"),
        ({"site": "nowhere"}, 422, "bad_site"),
        ({"index": 64}, 422, "feature_out_of_range"),
        ({"index": -1}, 422, "bad_feature"),
        ({"kind": "explode"}, 422, "unknown_edit_kind"),
        ({"strength": "much"}, 400, "invalid"),
        ({"positions": {"mode": "set", "indices": [-1]}}, 422, "bad_positions"),
        ({"unknown": 1}, 400, "invalid"),
    ],
)
def test_impossible_plans(world, editor, edit, status, code) -> None:
    index = edit.pop("index", 3)
    response = create(editor, world, plan_for(world.sae, index, **edit))
    assert (response.status_code, error(response)["code"]) == (status, code), response.content
    assert not Patch.objects.filter(name="p").exists()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_strength_must_be_a_finite_number(world, editor, number) -> None:
    body = json.dumps({"model": str(world.model.pk), "name": "p", "plan": plan_for(world.sae)})
    body = body.replace('"strength": 0.5', f'"strength": {number}')
    response = editor.generic("POST", "/api/v1/patches", body, content_type="application/json")
    assert response.status_code in (400, 422)
    assert not Patch.objects.filter(name="p").exists()


def test_too_many_edits(world, editor) -> None:
    plan = {"edits": plan_for(world.sae)["edits"] * 257}
    assert error(create(editor, world, plan))["code"] == "too_many_edits"


def test_saes_of_others_and_of_other_models(world, foreign, client_of) -> None:
    editor = client_of("editor")
    MembershipFactory(project=foreign.project, user=world.people["editor"])
    other_model = SaeFactory(recording=RecordingFactory(project=world.project, model__project=world.project))
    unfinished = SaeFactory(recording=world.recording, state="pending", fingerprint="unfinished")
    for sae in (foreign.sae, other_model, unfinished):
        response = create(editor, world, plan_for(sae))
        assert (response.status_code, error(response)["code"]) == (422, "unknown_sae")


def test_change_needs_the_version_it_was_made_from(world, editor) -> None:
    url = f"/api/v1/patches/{world.patch.pk}"
    assert editor.get(url)["ETag"] == '"1"'
    first = editor.patch(url, {"name": "one"}, headers={"If-Match": '"1"'})
    assert (first.status_code, first["ETag"]) == (200, '"2"')
    stale = editor.patch(url, {"name": "two"}, headers={"If-Match": '"1"'})
    assert (stale.status_code, error(stale)["code"]) == (412, "version_conflict")
    assert editor.get(url).json()["name"] == "one"
    assert editor.patch(url, {"name": "three"}).status_code == 200  # without the header the last one wins
    assert editor.patch(url, {"name": "x"}, headers={"If-Match": "abc"}).status_code == 400


def test_every_change_is_a_version_and_can_be_restored(world, editor) -> None:
    url = f"/api/v1/patches/{world.patch.pk}"
    original = editor.get(url).json()
    editor.patch(url, {"plan": plan_for(world.sae, 9), "name": "new name"})
    editor.post(f"{url}/toggle", {"enabled": False})
    editor.post(f"{url}/toggle", {"enabled": False})  # already off: no change, no version
    versions = editor.get(f"{url}/versions").json()
    assert [(v["version"], v["change"]) for v in versions] == [
        (3, "disabled"),
        (2, "changed"),
        (1, "created"),
    ]
    restored = editor.post(f"{url}/restore", {"version": 1}).json()
    assert restored["version"] == 4
    assert {k: restored[k] for k in ("name", "plan", "enabled")} == {
        k: original[k] for k in ("name", "plan", "enabled")
    }
    assert editor.post(f"{url}/restore", {"version": 99}).status_code == 404
    actions = list(AuditEvent.objects.filter(target_id=str(world.patch.pk)).values_list("action", flat=True))
    assert actions == ["patch.restored", "patch.disabled", "patch.changed"]


def test_a_bad_change_changes_nothing(world, editor) -> None:
    url = f"/api/v1/patches/{world.patch.pk}"
    before = editor.get(url).json()
    bad = editor.patch(url, {"name": "x", "plan": plan_for(world.sae, 64)})
    assert bad.status_code == 422
    assert editor.get(url).json() == before


def test_names_are_unique(world, editor) -> None:
    create(editor, world, {"edits": []})
    assert error(create(editor, world, {"edits": []}))["code"] == "name_taken"
    taken = editor.patch(f"/api/v1/patches/{world.patch.pk}", {"name": "p"})
    assert error(taken)["code"] == "name_taken"


def test_delete_is_remembered(world, editor) -> None:
    assert editor.delete(f"/api/v1/patches/{world.patch.pk}").status_code == 204
    event = AuditEvent.objects.get(action="patch.deleted")
    assert event.data["plan"] == world.patch.plan
    assert event.target_name == world.patch.name


def test_live_sessions_know_only_their_own_ready_saes(world, foreign) -> None:
    from apps.live.services import live_paths
    from tests.factories import SaeFactory

    SaeFactory(recording=world.recording, name="unfinished", state="pending", artifact=None)
    assert set(live_paths(world.model).saes) == {world.sae.fingerprint}
    assert set(live_paths(foreign.model).saes) == {foreign.sae.fingerprint}


def test_live_sessions_know_only_their_own_ready_adapters(world, foreign) -> None:
    from apps.live.services import live_paths
    from tests.factories import AdapterFactory

    known = set(live_paths(world.model).adapters)
    mine, theirs = AdapterFactory(model=world.model), AdapterFactory(model=foreign.model)
    AdapterFactory(model=world.model, state="pending", artifact=None)
    paths = live_paths(world.model).adapters
    assert set(paths) == known | {mine.fingerprint}
    assert theirs.fingerprint not in paths
    assert paths[mine.fingerprint] == str(mine.artifact.checkout())


def test_kinds_of_edits_describe_how_they_are_offered(editor) -> None:
    found = {kind["name"]: kind for kind in editor.get("/api/v1/edit-kinds").json()}
    assert list(found)[:2] == ["ablate", "scale"]
    assert found["scale"]["slider"] == {"min": -2, "max": 8, "step": 0.05}
    assert found["scale"]["neutral"] == 1
    assert (found["splice"]["refers_to"], found["lora"]["refers_to"]) == ("sae", "adapter")
    assert all(kind["title"] and kind["description"] and kind["formula"] for kind in found.values())


def test_a_stored_patch_of_a_kind_that_is_not_installed_is_shown_and_refused_where_it_is_used(
    world, editor
) -> None:
    patch = create(editor, world, plan_for(world.sae, 5)).json()
    plan = patch["plan"]
    plan["edits"][0]["kind"] = "of_another_machine"
    Patch.objects.filter(pk=patch["id"]).update(plan=plan)
    shown = editor.get("/api/v1/patches", {"project": str(world.project.pk)}).json()["results"]
    assert "of_another_machine" in [one["plan"]["edits"][0]["kind"] for one in shown]
    assert editor.get(f"/api/v1/projects/{world.project.pk}/lineage").status_code == 200
    refused = editor.get(f"/api/v1/patches/{patch['id']}/targets")
    assert refused.status_code == 422
    assert error(refused)["code"] == "unknown_edit_kind"
    assert "of_another_machine" in error(refused)["detail"]
