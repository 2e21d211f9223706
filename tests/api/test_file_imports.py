"""Texts and recordings of others, over REST, with the child processes that look at them."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.artifacts.models import Artifact, Upload
from apps.jobs import leases
from apps.jobs.kinds import get_kind
from apps.jobs.models import Job
from apps.registry import models as registry
from apps.registry.models import Corpus
from microscope.errors import MicroscopeError
from microscope.params.files import ImportCorpusParams
from microscope.quarantine.corpora import import_corpus
from tests.engine_fixtures import *  # noqa: F403
from tests.factories import LanguageModelFactory, UploadFactory


def error(response) -> dict:
    return response.json()["errors"][0]


def bring_in(client, world, name: str, content: bytes, *, corpus: str = "up", **params):
    sent = UploadFactory(created_by=world.people["editor"], path=name, content=content)
    body = {"project": str(world.project.pk), "name": corpus, "uploads": [str(sent.pk)], "params": params}
    return client.post("/api/v1/corpora/import", body, headers={"Idempotency-Key": f"{corpus}-{name}"})


def parquet(rows: int = 3) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(rows)]}), buffer)
    return buffer.getvalue()


# --- corpora ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "stored", "documents"),
    [
        ("a.txt", "Ein Text mit Ümläuten.".encode(), "text.txt", None),
        ("folder/a.jsonl", b'{"text": "one"}\n\n{"text": "two"}\n', "text.jsonl", 2),
        ("called.txt", parquet(), "text.parquet", 3),
    ],
)
def test_a_corpus_is_there_once_it_was_read(
    world, editor, run_child, name, content, stored, documents
) -> None:
    answer = bring_in(editor, world, name, content)
    assert answer.status_code == 202, answer.content
    row = answer.json()["corpus"]
    assert (row["state"], row["bytes"], row["reference"]) == ("pending", len(content), name.split("/")[-1])
    again = bring_in(editor, world, name, content)
    assert again.json()["job"]["id"] == answer.json()["job"]["id"] == row["job"]
    job = run_child(row["job"])
    assert job.state == "succeeded", job.error_message
    row = editor.get(f"/api/v1/corpora/{row['id']}").json()
    assert (row["state"], row["bytes"], row["documents"]) == ("ready", len(content), documents)
    corpus = Corpus.objects.get(pk=row["id"])
    assert [entry["path"] for entry in corpus.artifact.files] == [stored]
    assert (corpus.artifact.checkout() / stored).read_bytes() == content
    assert not Upload.objects.filter(used_by__isnull=False).exists()


BAD_CORPORA = [
    ("a.txt", b"", "corpus_empty"),
    ("model.txt", b"PK\x03\x04" + bytes(40), "wrong_file_type"),
    ("p.txt", b"\x80\x04\x95" + bytes(30), "pickle_refused"),
    ("latin.txt", "Ümläute".encode("latin-1"), "wrong_file_type"),
    ("cut.parquet", parquet()[:-5], "bad_corpus_file"),
    ("a.jsonl", b'{"id": "one"}\n', "no_text_field"),
]


@pytest.mark.parametrize(("name", "content", "code"), BAD_CORPORA)
def test_a_bad_corpus_fails_in_words_and_leaves_no_files(
    world, editor, files, run_child, name, content, code, django_capture_on_commit_callbacks
) -> None:
    row = bring_in(editor, world, name, content).json()["corpus"]
    job = run_child(row["job"])
    assert (job.state, job.error_code) == ("failed", code)
    assert editor.get(f"/api/v1/corpora/{row['id']}").json()["state"] == "failed"
    assert not Artifact.objects.filter(kind="corpus").exists()
    with django_capture_on_commit_callbacks(execute=True):
        assert editor.delete(f"/api/v1/corpora/{row['id']}").status_code == 204
    assert not Upload.objects.filter(used_by__isnull=False).exists()
    assert not [file for file in (files / "artifacts").rglob("a*") if file.is_file()]


def test_another_field_and_another_try(world, editor, run_child) -> None:
    """What failed for its field is imported again under another name; the field goes with the corpus."""
    failed = bring_in(editor, world, "a.jsonl", b'{"id": "one"}\n').json()
    assert run_child(failed["job"]["id"]).error_code == "no_text_field"
    row = bring_in(editor, world, "a.jsonl", b'{"id": "one"}\n', corpus="b", text_field="id").json()
    assert (row["corpus"]["text_field"], run_child(row["job"]["id"]).state) == ("id", "succeeded")


def test_what_cannot_start(world, editor, client_of) -> None:
    taken = bring_in(editor, world, "a.txt", b"text", corpus=world.corpus.name)
    assert (taken.status_code, error(taken)["code"]) == (400, "name_taken")
    assert not Upload.objects.filter(used_by__isnull=False).exists()
    strange = bring_in(editor, world, "a.txt", b"text", nonsense=1)
    assert (strange.status_code, error(strange)["code"]) == (422, "bad_parameters")
    theirs = bring_in(client_of("owner"), world, "a.txt", b"text")  # an upload of the editor
    assert (theirs.status_code, error(theirs)["code"]) == (400, "does_not_exist")
    old = editor.post("/api/v1/corpora", {"project": str(world.project.pk), "name": "x", "kind": "upload"})
    assert old.status_code == 400


def test_a_corpus_is_not_deleted_while_its_job_runs(
    world, editor, run_child, django_capture_on_commit_callbacks
) -> None:
    row = bring_in(editor, world, "a.txt", b"text").json()["corpus"]
    assert error(editor.delete(f"/api/v1/corpora/{row['id']}"))["code"] == "job_active"
    run_child(row["job"])
    folder = Corpus.objects.get(pk=row["id"]).artifact.checkout()
    with django_capture_on_commit_callbacks(execute=True):
        assert editor.delete(f"/api/v1/corpora/{row['id']}").status_code == 204
    assert not folder.exists()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400), name=st.sampled_from(["a.txt", "a.jsonl", "a.parquet", "a"]))
def test_any_bytes_are_taken_whole_or_refused(tmp_path, content, name) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / name).write_bytes(content)
    code = ""
    try:
        taken = import_corpus(ImportCorpusParams(path=str(tmp_path / name), out=str(tmp_path / "out")))
    except MicroscopeError as refusal:
        code = refusal.code
    if code:
        known = {"corpus_empty", "wrong_file_type", "bad_corpus_file", "no_text_field", "pickle_refused"}
        assert code in known
    else:
        assert (tmp_path / "out" / taken["file"]).read_bytes() == content


# --- recordings ---------------------------------------------------------------------------------------


@pytest.fixture
def tiny_model(world, model_folders):
    reference = str(model_folders["llama"])
    return LanguageModelFactory(project=world.project, source="folder", reference=reference, name="tiny")


def send_recording(editor, world, model, folder: Path, name: str = "theirs"):
    ids = [
        str(
            UploadFactory(
                created_by=world.people["editor"], path=f"acts/{file.name}", content=file.read_bytes()
            ).pk
        )
        for file in sorted(folder.iterdir())
    ]
    return editor.post("/api/v1/recordings/import", {"model": str(model.pk), "name": name, "uploads": ids})


def test_a_recording_comes_in_goes_out_and_comes_in_again(
    world, editor, run_child, tiny_model, recording_folder
) -> None:
    answer = send_recording(editor, world, tiny_model, recording_folder)
    assert answer.status_code == 202, answer.content
    assert run_child(answer.json()["job"]["id"]).state == "succeeded"
    row = editor.get(f"/api/v1/recordings/{answer.json()['recording']['id']}").json()
    assert (row["state"], row["layers"], row["sites"]) == ("ready", [1, 2], ["resid_post"])
    assert (row["tokens"], row["corpus"], row["corpus_name"], row["mixture"]) == (4000, None, None, [])
    assert row["summary"]["corpus"]["documents"] > 0
    was = {e["path"]: e["sha256"] for e in registry.Recording.objects.get(pk=row["id"]).artifact.files}

    # It is a recording like any other: an SAE can be trained on it.
    params = {"layer": 2, "width": 96, "k": 8, "tokens": 1000}
    sae = editor.post("/api/v1/saes", {"recording": row["id"], "name": "s", "params": params})
    assert sae.status_code == 202, sae.content
    Job.objects.filter(pk=sae.json()["job"]["id"]).delete()

    out = editor.post(f"/api/v1/recordings/{row['id']}/export").json()
    job = run_child(out["job"]["id"])
    [packed] = job.artifact.files
    assert packed["path"] == "recording.zip"
    sent = UploadFactory(
        created_by=world.people["editor"],
        path="recording.zip",
        content=(job.artifact.checkout() / "recording.zip").read_bytes(),
    )
    body = {"model": str(tiny_model.pk), "name": "again", "uploads": [str(sent.pk)]}
    back = editor.post("/api/v1/recordings/import", body).json()
    # A model whose weights were seen before is not loaded to compare them.
    tiny_model.fingerprint = row["summary"]["model"]["fingerprint"]
    tiny_model.save()
    assert run_child(back["job"]["id"]).state == "succeeded"
    copy = registry.Recording.objects.get(pk=back["recording"]["id"])
    came = {e["path"]: e["sha256"] for e in copy.artifact.files}
    # what leaves names the model, not where it lay
    assert came.pop("manifest.json") != was.pop("manifest.json")
    assert came == was
    assert copy.fingerprint == row["fingerprint"]


def test_a_recording_of_another_model_is_refused(
    world, editor, run_child, model_folders, recording_folder
) -> None:
    other = LanguageModelFactory(
        project=world.project, source="folder", reference=str(model_folders["qwen3"]), name="other"
    )
    answer = send_recording(editor, world, other, recording_folder).json()
    job = run_child(answer["job"]["id"])
    assert (job.state, job.error_code) == ("failed", "wrong_model")
    assert "another model" in job.error_message
    assert editor.get(f"/api/v1/recordings/{answer['recording']['id']}").json()["state"] == "failed"


def test_only_finished_recordings_go_out_and_models_are_looked_at_first(world, editor, tiny_model) -> None:
    registry.Recording.objects.filter(pk=world.recording.pk).update(state="pending", artifact=None)
    refused = editor.post(f"/api/v1/recordings/{world.recording.pk}/export")
    assert (refused.status_code, error(refused)["code"]) == (409, "recording_not_ready")
    type(tiny_model).objects.update(state="pending")
    sent = UploadFactory(created_by=world.people["editor"], content=b"x")
    body = {"model": str(tiny_model.pk), "name": "n", "uploads": [str(sent.pk)]}
    refused = editor.post("/api/v1/recordings/import", body)
    assert (refused.status_code, error(refused)["code"]) == (409, "model_not_ready")


def test_what_is_known_of_the_model_is_compared_first(world, editor, tiny_model) -> None:
    tiny_model.facts = {"d_model": 32, "n_layers": 4}
    tiny_model.save()
    sent = UploadFactory(created_by=world.people["editor"], content=b"x")
    body = {"model": str(tiny_model.pk), "name": "n", "uploads": [str(sent.pk)]}
    job = Job.objects.get(pk=editor.post("/api/v1/recordings/import", body).json()["job"]["id"])
    config = get_kind("import_recording").prepare(job, leases.workdir(job.pk))
    assert (config["d_model"], config["n_layers"], config["model"]) == (32, 4, tiny_model.reference)
