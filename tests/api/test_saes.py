"""SAEs, evaluations and features: jobs in, rows out, lists that stay right and fast."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.artifacts.models import Artifact
from apps.audit.models import AuditEvent
from apps.features.models import Analysis, Feature
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job
from apps.registry.models import Recording, ResultState
from apps.saes.models import Evaluation, Sae
from tests.factories import details_file, details_line


def error(response) -> dict:
    return response.json()["errors"][0]


def train(client, world, **values):
    body = {"recording": str(world.recording.pk), "name": "new", "params": {"layer": 1, "width": 128, "k": 8}}
    return client.post("/api/v1/saes", {**body, **values})


# --- training and evaluating --------------------------------------------------------------------------------


def test_training(world, editor, run_outcome) -> None:
    answer = train(editor, world).json()
    assert (answer["sae"]["state"], answer["sae"]["width"], answer["sae"]["k"]) == ("pending", 128, 8)
    config = get_kind("train").prepare(Job.objects.get(pk=answer["job"]["id"]), Path("/w"))
    assert config["activations"] == str(world.recording.artifact.checkout())
    assert (config["out"], config["resume"]) == ("/w/out", True)
    from microscope.params import TrainParams, decode_params

    decode_params(TrainParams, config)
    result = {"fingerprint": "abc", "architecture": "topk", "n_latents": 128, "k": 8, "site": "resid_post.1"}
    run_outcome(answer["job"]["id"], result=result, files={"sae.safetensors": b"x", "sae.json": b"{}"})
    sae = editor.get(f"/api/v1/saes/{answer['sae']['id']}").json()
    assert (sae["state"], sae["fingerprint"]) == ("ready", "abc")
    artifact = editor.get(f"/api/v1/artifacts/{sae['artifact']}").json()
    assert [file["path"] for file in artifact["files"]] == ["sae.json", "sae.safetensors"]


def test_several_values_make_a_job_and_a_row_for_every_combination(world, editor) -> None:
    params = {"layer": 1, "width": [64, 128], "k": 8, "seed": [0, 5], "order_seed": 2}
    once = {"Idempotency-Key": "sweep"}
    body = {"recording": str(world.recording.pk), "name": "sweep", "params": params}
    answer = editor.post("/api/v1/saes", body, headers=once).json()
    made = [answer, *answer["more"]]
    assert [one["sae"]["name"] for one in made] == [
        f"sweep w{width} s{seed}" for width in (64, 128) for seed in (0, 5)
    ]
    configs = [Job.objects.get(pk=one["job"]["id"]).params for one in made]
    assert [(c["width"], c["k"], c["seed"]) for c in configs] == [
        ([width], [8], [seed]) for width in (64, 128) for seed in (0, 5)
    ]
    assert {c["order_seed"] for c in configs} == {2}
    again = editor.post("/api/v1/saes", body, headers=once).json()
    assert [one["job"]["id"] for one in [again, *again["more"]]] == [one["job"]["id"] for one in made]


def test_a_sweep_with_one_impossible_combination_starts_nothing(world, editor) -> None:
    response = train(editor, world, params={"layer": 1, "width": [128, 4], "k": 8})
    assert error(response)["code"] == "k_above_width"
    response = train(editor, world, params={"layer": 1, "width": 128, "seed": list(range(40))})
    assert error(response)["code"] == "too_many_saes"
    assert not Job.objects.filter(kind="train").exists()


def test_checkpoints_are_not_part_of_the_artifact(world, editor, run_outcome, files) -> None:
    from apps.jobs import leases

    answer = train(editor, world).json()
    scratch = leases.workdir(answer["job"]["id"]) / "out" / "checkpoints"
    scratch.mkdir(parents=True)
    (scratch / "step-1").write_bytes(b"big")
    result = {"fingerprint": "abc", "architecture": "topk", "n_latents": 128}
    job = run_outcome(answer["job"]["id"], result=result, files={"sae.json": b"{}"})
    assert [file["path"] for file in job.artifact.files] == ["sae.json"]
    assert not (job.artifact.checkout() / "checkpoints").exists()


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"layer": 3}, "layer_not_recorded"),
        ({"layer": 1, "site": "mlp_out"}, "layer_not_recorded"),
        ({"layer": 1, "width": 4, "k": 8}, "k_above_width"),
        ({"layer": 1, "site_out": "mlp_out"}, "layer_not_recorded"),
        ({"layer": 1, "layer_out": 3}, "layer_not_recorded"),
        ({"layer": 1, "skip": True}, "skip_without_target"),
        ({"layer": 1, "lr": -1}, "bad_parameters"),
        ({"layer": 1, "activations": "/etc/passwd"}, "bad_parameters"),
        ({}, "bad_parameters"),
    ],
)
def test_bad_training(world, editor, params, code) -> None:
    response = train(editor, world, params=params)
    assert (response.status_code, error(response)["code"]) == (422, code), response.content
    assert not Sae.objects.filter(name="new").exists()
    assert not Job.objects.filter(kind="train").exists()


def test_training_needs_a_ready_recording(world, editor) -> None:
    Recording.objects.filter(pk=world.recording.pk).update(state=ResultState.PENDING)
    assert error(train(editor, world))["code"] == "recording_not_ready"


def test_evaluation(world, editor, run_outcome) -> None:
    answer = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {"params": {"loss_contexts": 4}}).json()
    config = get_kind("evaluate").prepare(Job.objects.get(pk=answer["job"]["id"]), Path("/w"))
    assert config["sae_path"] == str(world.sae.artifact.checkout())
    goals = [{"name": "FVU", "value": None, "limit": 0.15, "better": "lower", "passed": None, "formula": "f"}]
    result = {"metrics": {"fvu": 0.1, "ce_recovered": None}, "goals": goals, "site": "resid_post.2"}
    run_outcome(answer["job"]["id"], result=result, files={"report.html": b"<p>", "report.json": b"{}"})
    newest = editor.get(f"/api/v1/saes/{world.sae.pk}").json()["evaluation"]
    assert newest["metrics"] == {"fvu": 0.1, "ce_recovered": None}
    assert newest["goals"] == goals
    assert newest["details"] == {"site": "resid_post.2"}
    listed = editor.get("/api/v1/evaluations", {"sae": str(world.sae.pk)}).json()
    assert listed["results"][0]["id"] == newest["id"]
    assert listed["count"] == 2


def test_report_is_served_in_a_sandbox(world, client_of) -> None:
    response = client_of("viewer").get(f"/api/v1/evaluations/{world.evaluation.pk}/report")
    assert response.status_code == 200
    assert b"".join(response) == b"<h1>Report</h1>"
    policy = response["Content-Security-Policy"]
    assert policy.startswith("sandbox")
    assert "allow-same-origin" not in policy
    assert "default-src 'none'" in policy
    assert response["X-Frame-Options"] == "SAMEORIGIN"


def test_failed_evaluation_leaves_the_sae_alone(world, editor, run_outcome) -> None:
    answer = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {}).json()
    run_outcome(answer["job"]["id"], error=("out_of_memory", "Too big.", "Smaller."))
    assert editor.get(f"/api/v1/saes/{world.sae.pk}").json()["state"] == "ready"


def test_deleting_an_sae_takes_everything_along(world, editor, django_capture_on_commit_callbacks) -> None:
    folders = [a.checkout() for a in (world.sae.artifact, world.evaluation.artifact, world.analysis.artifact)]
    assert all(folder.is_dir() for folder in folders)
    with django_capture_on_commit_callbacks(execute=True):
        assert editor.delete(f"/api/v1/saes/{world.sae.pk}").status_code == 204
    assert not any(folder.exists() for folder in folders)
    assert not Feature.objects.exists()
    assert not Evaluation.objects.exists()
    assert AuditEvent.objects.filter(action="sae.deleted").exists()


def test_an_sae_with_an_active_job_stays(world, editor) -> None:
    editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {})
    response = editor.delete(f"/api/v1/saes/{world.sae.pk}")
    assert (response.status_code, error(response)["code"]) == (409, "job_active")


# --- analysing ----------------------------------------------------------------------------------------------


@pytest.fixture
def analyse(world, editor, run_outcome):
    """Run an analysis of the world's SAE that found what the test says."""

    def run(content: bytes) -> Job:
        answer = editor.post(f"/api/v1/saes/{world.sae.pk}/analyse", {}).json()
        result = {"analysis": {"tokens": 5000, "n_features": content.count(b"\n")}}
        return run_outcome(answer["job"]["id"], result=result, files={"details.jsonl": content})

    return run


def test_new_analysis_replaces_numbers_and_keeps_what_people_wrote(
    world, editor, analyse, django_capture_on_commit_callbacks
) -> None:
    url = f"/api/v1/features/{world.feature.pk}"
    editor.patch(url, {"label": "Paris", "starred": True})
    old = world.analysis.artifact.checkout()
    changed = b"".join(
        json.dumps(details_line(i, density=0.5, max_activation=99.0)).encode() + b"\n" for i in range(12)
    )
    with django_capture_on_commit_callbacks(execute=True):
        analyse(changed)
    shown = editor.get(url).json()
    assert (shown["feature"]["label"], shown["feature"]["starred"]) == ("Paris", True)
    assert shown["feature"]["density"] == 0.5
    assert shown["details"]["max_activation"] == 99.0
    assert Feature.objects.filter(sae=world.sae).count() == 12
    assert Analysis.objects.get(sae=world.sae).tokens == 5000
    assert not old.exists()


@pytest.mark.parametrize(
    "content",
    [b"{}\n", b"not json\n", json.dumps(details_line(1)).encode() + b"\n", details_file(3)[:-40]],
    ids=["empty object", "no json", "wrong order", "cut off"],
)
def test_broken_details_are_refused_whole(world, analyse, content) -> None:
    from apps.core.errors import MicroscopeError

    with pytest.raises(MicroscopeError) as refusal:
        analyse(content)
    assert refusal.value.code == "bad_analysis"
    assert Feature.objects.filter(sae=world.sae).count() == 12
    assert Artifact.objects.filter(kind="analysis").count() == 1


def test_feature_page_reads_its_line(world, client_of) -> None:
    viewer = client_of("viewer")
    for index in (0, 5, 11):
        row = viewer.get("/api/v1/features", {"sae": str(world.sae.pk), "index": index}).json()["results"][0]
        shown = viewer.get(f"/api/v1/features/{row['id']}").json()
        assert shown["details"]["index"] == index
        assert shown["details"]["top_tokens"][0]["text"] == f" tok{index}"
        related = {(index + 1) % 12, (index + 2) % 12}
        assert {feature["index"] for feature in shown["related"]} == related
        assert shown["sae"]["fingerprint"] == world.sae.fingerprint
        assert shown["sae"]["model"] == str(world.model.pk)


def test_what_other_packages_analysed_is_on_the_feature_and_says_how_it_is_shown(world, editor) -> None:
    assert editor.get(f"/api/v1/features/{world.feature.pk}").json()["analyses"] == []
    added = {
        "name": "runs",
        "title": "Runs",
        "description": "",
        "package": "p 1",
        "columns": ["document", "tokens"],
    }
    world.analysis.manifest = {**world.analysis.manifest, "analyses": [added]}
    world.analysis.save()
    line = (
        json.dumps(details_line(world.feature.index, more={"runs": [[12, 4], ["a", None]]})).encode() + b"\n"
    )
    (world.analysis.artifact.checkout() / "details.jsonl").write_bytes(line)
    Feature.objects.filter(pk=world.feature.pk).update(detail_offset=0, detail_length=len(line))
    shown = editor.get(f"/api/v1/features/{world.feature.pk}").json()
    assert shown["details"]["more"] == {"runs": [[12, 4], ["a", None]]}
    assert shown["analyses"] == [{**added, "error": ""}]


def test_feature_whose_file_is_gone(world, editor) -> None:
    (world.analysis.artifact.checkout() / "details.jsonl").unlink()
    assert editor.get(f"/api/v1/features/{world.feature.pk}").status_code == 404


def test_labelling_is_audited(world, editor) -> None:
    response = editor.patch(f"/api/v1/features/{world.feature.pk}", {"label": "capital cities"})
    assert response.json()["label"] == "capital cities"
    event = AuditEvent.objects.get(action="feature.changed")
    assert event.data == {"before": {"label": ""}, "after": {"label": "capital cities"}}
    assert event.project_id == world.project.pk


# --- lists --------------------------------------------------------------------------------------------------


def pages(client, **params) -> list[list[dict]]:
    """Every page forwards; and back again, which must show the same."""
    url, found = "/api/v1/features", []
    answer = client.get(url, params).json()
    while True:
        found.append(answer["results"])
        if answer["next"] is None:
            break
        answer = client.get(answer["next"]).json()
    backwards = [answer["results"]]
    while answer["previous"] is not None:
        answer = client.get(answer["previous"]).json()
        backwards.append(answer["results"])
    assert backwards[::-1] == found
    return found


@pytest.mark.parametrize("ordering", ["index", "-index", "density", "-density", "max_activation", "-p999"])
@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_pages_show_every_row_once_in_order(world, editor, ordering, size) -> None:
    # many ties: most features are dead or share a value, as in real SAEs
    Feature.objects.filter(sae=world.sae, index__gte=4).update(density=0, p999=1.0, max_activation=2.0)
    found = [
        row
        for page in pages(editor, sae=str(world.sae.pk), ordering=ordering, page_size=size)
        for row in page
    ]
    name, sign = ordering.removeprefix("-"), -1 if ordering.startswith("-") else 1
    assert sorted(row["index"] for row in found) == list(range(12))
    assert found == sorted(found, key=lambda row: (sign * row[name], sign * row["index"]))


def test_filters(world, editor) -> None:
    sae = str(world.sae.pk)

    def indices(**params) -> set[int]:
        return {row["index"] for page in pages(editor, sae=sae, **params) for row in page}

    Feature.objects.filter(sae=world.sae, index=2).update(dead=True, starred=True)
    Feature.objects.filter(sae=world.sae, index=7).update(label="Cities of FRANCE")
    Feature.objects.filter(sae=world.sae, index=4).update(density=0.9)
    assert indices(dead="true") == {0, 2}
    assert indices(starred="true") == {2}
    assert indices(labelled="true") == {7}
    assert indices(search="france") == {7}
    assert indices(search="TOK11") == {11}
    assert indices(search="paris") == set(range(12))  # promoted by all
    assert indices(search="rome") == set()  # suppressed is not searched
    assert indices(search="100%") == set()
    assert indices(min_density=0.5) == {4}
    assert indices(max_density=0.0) == {0}
    assert indices(index=3, dead="false") == {3}


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({}, 400),
        ({"sae": "x"}, 400),
        ({"ordering": "label"}, 400),
        ({"ordering": "sae__project__name"}, 400),
        ({"page_size": 0}, 400),
        ({"page_size": 5000}, 400),
        ({"page_size": "x"}, 400),
        ({"cursor": "%%%"}, 404),
        ({"cursor": "AAAA"}, 404),
        ({"min_density": "x"}, 400),
    ],
)
def test_odd_lists(world, editor, params, status) -> None:
    given = {"sae": str(world.sae.pk), **params} if params != {} else {}
    response = editor.get("/api/v1/features", given)
    assert response.status_code == status, response.content


def test_cursor_of_another_ordering(world, editor) -> None:
    sae = str(world.sae.pk)
    first = editor.get("/api/v1/features", {"sae": sae, "ordering": "density", "page_size": 2}).json()
    other = editor.get(first["next"].replace("ordering=density", "ordering=index"))
    assert other.status_code == 404


def test_features_of_others_are_an_empty_list(foreign, editor) -> None:
    answer = editor.get("/api/v1/features", {"sae": str(foreign.sae.pk)}).json()
    assert (answer["count"], answer["results"]) == (0, [])
    assert editor.get(f"/api/v1/features/{foreign.feature.pk}").status_code == 404
