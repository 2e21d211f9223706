"""Models, corpora and recordings: what is accepted, and how refusals read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apps.audit.models import AuditEvent
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from tests.factories import ArtifactFactory, CorpusFactory


def error(response) -> dict:
    return response.json()["errors"][0]


# --- models -----------------------------------------------------------------------------------------------


def add_model(client, world, **values):
    body = {"project": str(world.project.pk), "name": "new", "source": "hub", "reference": "owner/name"}
    return client.post("/api/v1/models", {**body, **values})


def test_adding_a_model_queues_a_look_at_it(world, editor) -> None:
    response = add_model(editor, world, revision="main")
    assert response.status_code == 202
    answer = response.json()
    assert answer["model"]["state"] == "pending"
    assert answer["job"]["kind"] == "inspect_model"
    assert answer["job"]["subject_id"] == answer["model"]["id"]
    job = Job.objects.get(pk=answer["job"]["id"])
    assert get_kind("inspect_model").prepare(job, Path("x")) == {"model": "owner/name", "revision": "main"}
    assert AuditEvent.objects.filter(action="model.added", actor=world.people["editor"]).count() == 1


@pytest.mark.parametrize(
    "reference",
    [
        "../etc",
        "a/b/c",
        "/etc/passwd",
        "a//b",
        "a/..",
        "a b",
        "a/b\0",
        "https://x/y",
        "a/b?x",
        "-a/b",
        "a/-b",
        "é/b",
        "a" * 200,
        "a--b/c",
    ],
)
def test_strange_hub_ids_are_refused(world, editor, reference) -> None:
    response = add_model(editor, world, reference=reference)
    assert response.status_code in (400, 422), reference
    assert not LanguageModel.objects.filter(name="new").exists()


@pytest.mark.parametrize(
    "reference", ["text", "json", "pandas", "Parquet", "webdataset", "./data", "/etc", "a/b/c"]
)
def test_a_dataset_is_one_of_the_hub(world, editor, reference) -> None:
    """Bare names of readers would read whatever lies in the job's folder."""
    body = {"project": str(world.project.pk), "name": "t", "kind": "hub_dataset", "reference": reference}
    response = editor.post("/api/v1/corpora", body)
    assert response.status_code == 422, response.content
    assert error(response)["code"] in ("bad_dataset", "bad_hub_id")
    assert error(response)["attr"] == "reference"
    assert not Corpus.objects.filter(name="t").exists()


@pytest.mark.parametrize("revision", ["..", "a/../b", "-x", "x y", "x\0"])
def test_strange_revisions_are_refused(world, editor, revision) -> None:
    assert add_model(editor, world, revision=revision).status_code in (400, 422)


def test_folders_only_below_the_models_folder(world, client_of, files) -> None:
    editor, staff = client_of("editor"), client_of("staff")
    inside = files / "models" / "tiny"
    inside.mkdir()
    elsewhere = files / "elsewhere"
    elsewhere.mkdir()
    (files / "models" / "link").symlink_to(elsewhere)

    accepted = add_model(editor, world, source="folder", reference="tiny")
    assert accepted.status_code == 202
    assert accepted.json()["model"]["reference"] == str(inside.resolve())
    for path in (str(elsewhere), "../elsewhere", "link", str(files / "does-not-exist")):
        refused = add_model(editor, world, source="folder", reference=path, name="x")
        assert (refused.status_code, error(refused)["code"]) == (422, "path_not_allowed"), path
    missing = add_model(editor, world, source="folder", reference="nope", name="x")
    assert error(missing)["code"] == "no_such_path"
    assert add_model(staff, world, source="folder", reference=str(elsewhere), name="x").status_code == 202


def test_the_same_name_twice(world, editor) -> None:
    assert add_model(editor, world).status_code == 202
    second = add_model(editor, world)
    assert (second.status_code, error(second)["code"], error(second)["attr"]) == (400, "name_taken", "name")


def test_what_the_look_finds_lands_on_the_model(world, editor, run_outcome) -> None:
    answer = add_model(editor, world).json()
    run_outcome(answer["job"]["id"], result={"n_layers": 30, "family": "llama"})
    model = editor.get(f"/api/v1/models/{answer['model']['id']}").json()
    assert (model["state"], model["facts"]["n_layers"]) == ("ready", 30)


def test_an_unknown_model_fails_with_the_engines_words(world, editor, run_outcome) -> None:
    answer = add_model(editor, world).json()
    run_outcome(answer["job"]["id"], error=("unknown_model", "There is no such model.", "Check the id."))
    model = editor.get(f"/api/v1/models/{answer['model']['id']}").json()
    assert model["state"] == "failed"
    job = editor.get(f"/api/v1/jobs/{model['job']}").json()["job"]
    assert job["error"] == {
        "code": "unknown_model",
        "message": "There is no such model.",
        "hint": "Check the id.",
    }
    refused = editor.post(f"/api/v1/models/{model['id']}/load")
    assert (refused.status_code, error(refused)["code"]) == (409, "model_failed")
    assert "no such model" in error(refused)["detail"]


def test_load_and_unload(world, editor) -> None:
    url = f"/api/v1/models/{world.model.pk}"
    first = editor.post(f"{url}/load").json()
    assert first["wanted_loaded"] is True
    asked = LanguageModel.objects.get(pk=world.model.pk).load_asked_at
    editor.post(f"{url}/load")
    assert LanguageModel.objects.get(pk=world.model.pk).load_asked_at > asked  # asking again tries again
    assert editor.post(f"{url}/unload").json()["wanted_loaded"] is False


def test_a_used_model_stays(world, editor) -> None:
    refused = editor.delete(f"/api/v1/models/{world.model.pk}")
    assert (refused.status_code, error(refused)["code"]) == (409, "in_use")
    assert "recording" in error(refused)["detail"]
    assert LanguageModel.objects.filter(pk=world.model.pk).exists()


# --- corpora ----------------------------------------------------------------------------------------------


def test_builtin_corpora(world, editor) -> None:
    assert editor.get("/api/v1/corpora/builtin").json() == [{"name": "words", "bytes": 9}]
    body = {"project": str(world.project.pk), "name": "b", "kind": "builtin", "reference": "words"}
    assert editor.post("/api/v1/corpora", body).json()["bytes"] == 9
    unknown = editor.post("/api/v1/corpora", {**body, "name": "c", "reference": "../models"})
    assert (unknown.status_code, error(unknown)["code"]) == (422, "unknown_corpus")
    assert "words" in error(unknown)["hint"]


# --- recordings -------------------------------------------------------------------------------------------


def record(client, world, **values):
    body = {
        "model": str(world.model.pk),
        "corpus": str(world.corpus.pk),
        "name": "rec",
        "params": {"layers": [0, 3], "tokens": 5000},
    }
    return client.post("/api/v1/recordings", {**body, **values})


def test_recording_is_prepared_with_places_filled_in(world, editor) -> None:
    answer = record(editor, world).json()
    assert (answer["recording"]["state"], answer["recording"]["layers"]) == ("pending", [0, 3])
    job = Job.objects.get(pk=answer["job"]["id"])
    config = get_kind("trace").prepare(job, Path("/w"))
    assert config["model"] == "owner/name"
    assert config["dataset"] == "owner/texts"
    assert (config["out"], config["resume"], config["tokens"]) == ("/w/out", True, 5000)
    from microscope.params import TraceParams, decode_params

    decode_params(TraceParams, config)


def uploaded(world, name: str = "up", **values) -> Corpus:
    """A corpus somebody has uploaded, as its import leaves it."""
    artifact = ArtifactFactory(project=world.project, kind="corpus", content={"text.jsonl": b'{"body": "x"}'})
    return CorpusFactory(project=world.project, name=name, kind="upload", artifact=artifact, **values)


def test_recording_from_upload_and_builtin_names_files(world, editor, files) -> None:
    up = uploaded(world, text_field="body")
    answer = record(editor, world, corpus=str(up.pk)).json()
    config = get_kind("trace").prepare(Job.objects.get(pk=answer["job"]["id"]), Path("/w"))
    assert config["text_field"] == "body"
    assert [os.path.basename(path) for path in config["text"]] == ["text.jsonl"]
    assert all(Path(path).is_file() for path in config["text"])


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"layers": [4]}, "layer_out_of_range"),
        ({"layers": [-1]}, "layer_out_of_range"),
        ({"layers": []}, "bad_parameters"),
        ({"layers": "x"}, "bad_parameters"),
        ({"layers": [1], "tokens": 0}, "bad_parameters"),
        ({"layers": [1], "nonsense": 1}, "bad_parameters"),
        ({"layers": [1], "out": "/etc"}, "bad_parameters"),
        ({"layers": [1], "model": "other/model"}, "bad_parameters"),
        ({"layers": [1], "resume": True}, "bad_parameters"),
        ({"layers": [1], "site": "nowhere"}, "bad_parameters"),
        ({}, "bad_parameters"),
    ],
)
def test_bad_recordings_leave_nothing_behind(world, editor, params, code) -> None:
    jobs, recordings = Job.objects.count(), Recording.objects.count()
    response = record(editor, world, params=params)
    assert (response.status_code, error(response)["code"]) == (422, code), response.content
    assert (Job.objects.count(), Recording.objects.count()) == (jobs, recordings)


def test_a_mixture_is_prepared_with_a_weight_for_every_text(world, editor, files) -> None:
    """Files first and the Hub dataset last, as the engine counts its weights."""
    up = uploaded(world)
    body = {"project": str(world.project.pk), "name": "b", "kind": "builtin", "reference": "words"}
    builtin = editor.post("/api/v1/corpora", body).json()
    parts = [
        {"corpus": str(world.corpus.pk), "weight": 0.5},
        {"corpus": str(up.pk), "weight": 2},
        {"corpus": builtin["id"]},
    ]
    response = record_mixture(editor, world, parts)
    assert response.status_code == 202, response.content
    recording = response.json()["recording"]
    assert [(p["corpus"], p["weight"]) for p in recording["mixture"]] == [
        (str(world.corpus.pk), 0.5),
        (str(up.pk), 2.0),
        (builtin["id"], 1.0),
    ]
    assert recording["mixture"][2]["name"] == "b"
    job = Job.objects.get(pk=response.json()["job"]["id"])
    config = get_kind("trace").prepare(job, Path("/w"))
    assert [os.path.basename(path) for path in config["text"]] == ["text.jsonl", "words"]
    assert (config["dataset"], config["weights"]) == ("owner/texts", [2.0, 1.0, 0.5])
    from microscope.params import TraceParams, decode_params

    assert decode_params(TraceParams, config).weights == (2.0, 1.0, 0.5)
    # every part is in use, also those that are not the first
    refused = editor.delete(f"/api/v1/corpora/{builtin['id']}")
    assert (refused.status_code, error(refused)["code"]) == (409, "in_use")
    # and a repetition mixes the same
    again = editor.post(f"/api/v1/jobs/{job.pk}/clone", {"name": "again", "params": {"tokens": 700}})
    assert again.status_code < 300, again.content
    copy = Recording.objects.get(name="again")
    assert [(str(c.pk), w) for c, w in copy.texts()] == [
        (p["corpus"], p["weight"]) for p in recording["mixture"]
    ]


def test_bad_mixtures_are_refused(world, foreign, editor, files) -> None:
    up = uploaded(world)
    other_field, waiting = (
        uploaded(world, "b", text_field="body"),
        CorpusFactory(project=world.project, kind="upload", state="pending"),
    )
    dataset = {"project": str(world.project.pk), "name": "d", "kind": "hub_dataset", "reference": "x/y"}
    second = editor.post("/api/v1/corpora", dataset).json()
    own = str(world.corpus.pk)
    for parts, code in (
        ([own, own], "same_corpus_twice"),
        ([own, second["id"]], "two_datasets"),
        ([str(up.pk), str(other_field.pk)], "text_fields_differ"),
        ([str(up.pk), str(waiting.pk)], "corpus_not_ready"),
        ([own, str(foreign.corpus.pk)], "does_not_exist"),
        ([], "empty"),
    ):
        response = record_mixture(editor, world, [{"corpus": one} for one in parts])
        assert response.status_code in (400, 409, 422), code
        assert error(response)["code"] == code, response.content
    for weight in (0, -1, 1e9, "x"):
        assert record_mixture(editor, world, [{"corpus": own, "weight": weight}]).status_code in (400, 422)
    both = record(editor, world, mixture=[{"corpus": own}])
    assert (both.status_code, error(both)["attr"]) == (400, "corpus")
    assert not Recording.objects.filter(name="rec").exists()


def record_mixture(client, world, parts):
    body = {"model": str(world.model.pk), "name": "rec", "params": {"layers": [0, 3], "tokens": 5000}}
    return client.post("/api/v1/recordings", {**body, "mixture": parts})


def test_several_kinds_of_sites_in_one_recording(world, editor) -> None:
    answer = record(editor, world, params={"layers": [1], "site": ["resid_mid", "mlp_out"]}).json()
    assert answer["recording"]["sites"] == ["resid_mid", "mlp_out"]
    config = get_kind("trace").prepare(Job.objects.get(pk=answer["job"]["id"]), Path("/w"))
    from microscope.params import TraceParams, decode_params

    assert decode_params(TraceParams, config).site == ("resid_mid", "mlp_out")


# --- rounded weights ----------------------------------------------------------------------------------


def test_a_rounded_model_is_looked_at_with_its_precision(world, editor, run_outcome) -> None:
    answer = add_model(editor, world, dtype="nf4").json()
    job = Job.objects.get(pk=answer["job"]["id"])
    config = get_kind("inspect_model").prepare(job, Path("/w"))
    assert config["dtype"] == "nf4"
    rounding = {"dtype": "nf4", "kl": 0.25, "max_abs_logit": 3.1, "top1_agreement": 0.71, "tokens": 128}
    run_outcome(job.pk, result={"n_layers": 4, "fingerprint": "rounded", "rounding": rounding})
    model = editor.get(f"/api/v1/models/{answer['model']['id']}").json()
    assert (model["fingerprint"], model["facts"]["rounding"]) == ("rounded", rounding)
    assert "fingerprint" not in model["facts"]
    recording = record(editor, world, model=model["id"]).json()
    config = get_kind("trace").prepare(Job.objects.get(pk=recording["job"]["id"]), Path("/w"))
    assert config["dtype"] == "nf4"


def test_a_recording_in_another_precision_belongs_to_another_model(world, editor) -> None:
    params = {"layers": [1], "tokens": 5000}
    for model_dtype, asked, code in (
        ("auto", "nf4", 422),
        ("nf4", "bfloat16", 422),
        ("nf4", "int8", 422),
        ("nf4", "nf4", 202),
        ("float32", "bfloat16", 202),
    ):
        LanguageModel.objects.filter(pk=world.model.pk).update(dtype=model_dtype)
        name = f"{model_dtype} {asked}"
        response = record(editor, world, name=name, params={**params, "dtype": asked})
        assert response.status_code == code, (model_dtype, asked)
        if code == 422:
            assert error(response)["code"] == "another_precision"


def test_nan_in_a_request_is_a_parse_error(world, editor) -> None:
    body = json.dumps({"params": {"layers": [1], "held_out": float("nan")}})
    response = editor.generic("POST", "/api/v1/recordings", body, content_type="application/json")
    assert (response.status_code, error(response)["code"]) == (400, "parse_error")


def test_recording_needs_a_ready_model(world, editor) -> None:
    LanguageModel.objects.filter(pk=world.model.pk).update(state=ResultState.PENDING)
    response = record(editor, world)
    assert (response.status_code, error(response)["code"]) == (409, "model_not_ready")


def test_ids_of_other_projects_point_nowhere(world, foreign, client_of) -> None:
    """For an outsider of the other project, and for somebody who belongs to both."""
    from tests.factories import MembershipFactory

    editor = client_of("editor")
    invisible = record(editor, world, corpus=str(foreign.corpus.pk))
    assert (invisible.status_code, error(invisible)["code"]) == (400, "does_not_exist")
    MembershipFactory(project=foreign.project, user=world.people["editor"], role="editor")
    visible = record(editor, world, corpus=str(foreign.corpus.pk))
    assert (visible.status_code, error(visible)["code"]) == (400, "does_not_exist")
    assert error(visible)["attr"] == error(invisible)["attr"] == "corpus"


def test_same_idempotency_key_same_job(world, editor) -> None:
    headers = {"Idempotency-Key": "k1"}
    body = {
        "model": str(world.model.pk),
        "corpus": str(world.corpus.pk),
        "name": "rec",
        "params": {"layers": [1]},
    }
    first = editor.post("/api/v1/recordings", body, headers=headers).json()
    second = editor.post("/api/v1/recordings", body, headers=headers)
    assert second.status_code == 202
    assert second.json()["job"]["id"] == first["job"]["id"]
    assert second.json()["recording"]["id"] == first["recording"]["id"]
    assert Job.objects.filter(kind="trace").count() == 1
    other = editor.post("/api/v1/recordings", {**body, "name": "r2"}, headers={"Idempotency-Key": "k2"})
    assert other.json()["job"]["id"] != first["job"]["id"]
    long = editor.post("/api/v1/recordings", body, headers={"Idempotency-Key": "k" * 201})
    assert error(long)["code"] == "idempotency_key_too_long"


def test_recording_fills_in_when_traced(world, editor, run_outcome) -> None:
    answer = record(editor, world).json()
    result = {"fingerprint": "f1", "tokens": 4321, "model": {"fingerprint": "weights"}}
    run_outcome(answer["job"]["id"], result=result, files={"data.parquet": b"x"})
    recording = editor.get(f"/api/v1/recordings/{answer['recording']['id']}").json()
    assert (recording["state"], recording["tokens"], recording["fingerprint"]) == ("ready", 4321, "f1")
    assert recording["bytes"] == 1
    assert LanguageModel.objects.get(pk=world.model.pk).fingerprint == "weights"
