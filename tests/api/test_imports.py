"""Bringing SAEs in and taking them out, with the child processes that do it."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from apps.artifacts.models import Upload
from apps.audit.models import AuditEvent
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job
from apps.registry.models import LanguageModel
from apps.saes.models import Sae
from tests.engine_fixtures import *  # noqa: F403
from tests.factories import LanguageModelFactory, RecordingFactory, UploadFactory


def error(response) -> dict:
    return response.json()["errors"][0]


def upload_folder(person, folder: Path, inside: str = "theirs") -> list[str]:
    """Finished uploads of all files of a folder, as a browser sends a dragged folder."""
    return [
        str(
            UploadFactory(
                created_by=person, path=f"{inside}/{path.relative_to(folder)}", content=path.read_bytes()
            ).pk
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


@pytest.fixture
def tiny_model(world, model_folders) -> LanguageModel:
    return LanguageModelFactory(
        project=world.project, source="folder", reference=str(model_folders["llama"]), name="tiny"
    )


@pytest.fixture
def saelens_folder(sae, tmp_path) -> Path:
    from microscope.formats import write_sae

    write_sae(sae, tmp_path / "saelens", format="saelens")
    (tmp_path / "saelens" / "README.md").write_text("# An SAE")
    return tmp_path / "saelens"


def test_a_colleagues_folder(world, editor, run_child, tiny_model, saelens_folder, sae) -> None:
    """Drag it in, see the smoke test, use it in a patch, write it out for another library."""
    ids = upload_folder(world.people["editor"], saelens_folder)
    body = {"model": str(tiny_model.pk), "name": "theirs", "uploads": ids}
    answer = editor.post("/api/v1/saes/import", body, headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202, answer.content
    again = editor.post("/api/v1/saes/import", body, headers={"Idempotency-Key": "k"})
    assert again.json()["job"]["id"] == answer.json()["job"]["id"]
    assert answer.json()["sae"]["state"] == "pending"
    assert run_child(answer.json()["job"]["id"]).state == "succeeded"
    row = editor.get(f"/api/v1/saes/{answer.json()['sae']['id']}").json()
    assert (row["state"], row["width"], row["layer"], row["site"]) == ("ready", 96, 2, "resid_post")
    assert (row["recording"], row["recording_name"], row["model"]) == (None, None, str(tiny_model.pk))
    smoke = row["summary"]["smoke_test"]
    assert smoke["tokens"] > 20
    assert 0 < smoke["l0"] <= 8
    assert smoke["message"].startswith("On ")
    assert not Upload.objects.filter(used_by__isnull=False).exists()
    plan = {
        "edits": [
            {"kind": "ablate", "site": "resid_post.2", "feature": {"sae": row["fingerprint"], "index": 3}}
        ]
    }
    patch = editor.post("/api/v1/patches", {"model": str(tiny_model.pk), "name": "p", "plan": plan})
    assert patch.status_code == 201, patch.content
    # It has no recording: measuring it needs one, which then is its own.
    measured = editor.post(f"/api/v1/saes/{row['id']}/evaluate", {})
    with pytest.raises(Exception, match="has no recording"):
        get_kind("evaluate").prepare(Job.objects.get(pk=measured.json()["job"]["id"]), Path("/w"))
    recording = RecordingFactory(model=tiny_model, corpus=world.corpus)
    answer = editor.post(f"/api/v1/saes/{row['id']}/analyse", {"recording": str(recording.pk)})
    assert answer.status_code == 202, answer.content
    assert Sae.objects.get(pk=row["id"]).recording == recording
    other = editor.post(f"/api/v1/saes/{row['id']}/evaluate", {"recording": str(world.recording.pk)})
    assert error(other)["code"] == "recording_fixed"
    # Out again, for a third library.
    out = editor.post(
        f"/api/v1/saes/{row['id']}/export", {"params": {"format": "dictionary_learning"}}
    ).json()
    run_child(out["job"]["id"])
    artifact = editor.get(f"/api/v1/jobs/{out['job']['id']}").json()["job"]["artifact"]
    archive = zipfile.ZipFile(BytesIO(b"".join(editor.get(f"/api/v1/artifacts/{artifact}/zip"))))
    assert json.loads(archive.read("config.json"))["trainer"]["dict_size"] == 96
    assert AuditEvent.objects.filter(action="artifact.downloaded", target_id=artifact).count() == 1


def test_on_a_recording(world, editor, run_child, tiny_model, recording_folder, sae_folder) -> None:
    import shutil

    recording = RecordingFactory(model=tiny_model, corpus=world.corpus)
    shutil.rmtree(recording.artifact.local_path)
    shutil.copytree(recording_folder, recording.artifact.local_path)
    body = {
        "model": str(tiny_model.pk),
        "recording": str(recording.pk),
        "name": "ours",
        "uploads": upload_folder(world.people["editor"], sae_folder, inside="a/b"),
        "params": {"format": "native"},
    }
    answer = editor.post("/api/v1/saes/import", body).json()
    run_child(answer["job"]["id"])
    row = editor.get(f"/api/v1/saes/{answer['sae']['id']}").json()
    assert row["state"] == "ready", editor.get(f"/api/v1/jobs/{answer['job']['id']}").json()
    assert row["summary"]["smoke_test"]["passed"]
    assert row["recording"] == str(recording.pk)


def test_what_does_not_check_fails_with_the_reason_and_can_be_deleted(
    world, editor, run_child, tiny_model
) -> None:
    import pickle

    person = world.people["editor"]
    upload = UploadFactory(created_by=person, path="sae/ae.safetensors", content=pickle.dumps({"a": 1}))
    body = {"model": str(tiny_model.pk), "name": "bad", "uploads": [str(upload.pk)]}
    answer = editor.post("/api/v1/saes/import", body).json()
    job = run_child(answer["job"]["id"])
    assert (job.state, job.error_code) == ("failed", "pickle_refused")
    assert "can run code" in job.error_message
    assert editor.get(f"/api/v1/saes/{answer['sae']['id']}").json()["state"] == "failed"
    assert Upload.objects.filter(used_by=job.pk).exists()  # for another try
    assert editor.delete(f"/api/v1/saes/{answer['sae']['id']}").status_code == 204
    assert not Upload.objects.filter(used_by=job.pk).exists()


def test_a_setting_stops_the_import_until_somebody_says_what_to_assume(
    world, editor, run_child, tiny_model, sae, tmp_path
) -> None:
    from microscope.formats import write_sae

    folder = tmp_path / "layers.2"
    write_sae(sae, folder, format="sparsify")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "multi_topk": True}))
    found = {}
    for name, params in (("unsure", {}), ("sure", {"assume": ["multi_topk=false"]})):
        body = {
            "model": str(tiny_model.pk),
            "name": name,
            "uploads": upload_folder(world.people["editor"], folder, inside="layers.2"),
            "params": params,
        }
        answer = editor.post("/api/v1/saes/import", body).json()
        found[name] = run_child(answer["job"]["id"]), editor.get(f"/api/v1/saes/{answer['sae']['id']}").json()
    job, row = found["unsure"]
    assert (job.error_code, row["state"]) == ("unsupported_setting", "failed")
    assert "multi_topk" in job.error_message
    assert found["sure"][1]["state"] == "ready"
    assert found["sure"][1]["summary"]["assumed"] == ["multi_topk: true in cfg.json, read as false"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"uploads": ["00000000-0000-7000-8000-000000000000"]}, "does_not_exist"),
        ({"params": {"format": "excel"}}, "bad_parameters"),
        ({"params": {"untrusted": False}}, "bad_parameters"),
        ({"params": {"allow_pickle": True}}, "bad_parameters"),
        ({"name": None}, "null"),
        ({"uploads": []}, "min_length"),
    ],
)
def test_bad_imports(world, editor, change, code) -> None:
    upload = UploadFactory(created_by=world.people["editor"], content=b"{}", path="cfg.json")
    body = {"model": str(world.model.pk), "name": "new", "uploads": [str(upload.pk)], **change}
    response = editor.post("/api/v1/saes/import", body)
    assert response.status_code in (400, 422)
    assert error(response)["code"] == code
    assert not Sae.objects.filter(name="new").exists()
    upload.refresh_from_db()
    assert upload.used_by is None


def test_unfinished_and_foreign_things(world, foreign, editor) -> None:
    unfinished = UploadFactory(created_by=world.people["editor"])
    body = {"model": str(world.model.pk), "name": "new", "uploads": [str(unfinished.pk)]}
    assert error(editor.post("/api/v1/saes/import", body))["code"] == "upload_incomplete"
    done = UploadFactory(created_by=world.people["editor"], content=b"{}")
    body = {"model": str(world.model.pk), "name": "new", "uploads": [str(done.pk)]}
    taken = editor.post("/api/v1/saes/import", {**body, "name": world.sae.name})
    assert error(taken)["code"] == "name_taken"
    theirs = editor.post("/api/v1/saes/import", {**body, "recording": str(foreign.recording.pk)})
    assert (theirs.status_code, error(theirs)["code"]) == (400, "does_not_exist")


def test_dashboards_need_an_analysis(world, editor) -> None:
    from apps.features.models import Analysis

    Analysis.objects.all().delete()
    answer = editor.post(f"/api/v1/saes/{world.sae.pk}/export", {"params": {"format": "neuronpedia"}})
    assert (answer.status_code, error(answer)["code"]) == (409, "no_analysis")
