"""Provenance graphs of the portal: computed, kept, brought in, given out, arranged, talked about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from apps.artifacts.models import Artifact, Upload
from apps.audit.models import AuditEvent
from apps.graphs.kinds import PROVENANCE
from apps.graphs.models import Graph, GraphComment
from apps.jobs import leases
from apps.jobs.models import Job
from microscope import graphs as g
from microscope.params import ProvenanceParams, decode_params
from tests.factories import (
    GraphFactory,
    LanguageModelFactory,
    RecordingFactory,
    SaeFactory,
    UploadFactory,
    document_for,
)

FOREIGN = Path(__file__).parents[1] / "unit/attribution_graph.json"
URL = "/api/v1/graphs"


def error(response) -> dict[str, Any]:
    return response.json()["errors"][0]


def asked(world, **values: Any) -> dict[str, Any]:
    return {
        "model": str(world.model.pk),
        "name": "why",
        "prompt": " one two\n",
        "target": {"kind": "feature", "sae": str(world.sae.pk), "index": 3, "position": -1},
        "saes": [str(world.sae.pk)],
        **values,
    }


def plain(document: g.Graph) -> dict[str, Any]:
    return json.loads(msgspec.json.encode(document))


# --- computed by a job --------------------------------------------------------------------------------


def prepared(job_id: str) -> ProvenanceParams:
    """What the job's process would be told, read as it reads it."""
    job = Job.objects.get(pk=job_id)
    workdir = leases.workdir(job.pk)
    workdir.mkdir(parents=True, exist_ok=True)
    return decode_params(ProvenanceParams, PROVENANCE.prepare(job, workdir))


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ({"kind": "feature", "index": 3, "position": 1}, {"feature": 3, "position": 1, "layer": 2}),
        ({"kind": "token", "token": 7}, {"token_id": 7, "position": -1}),
        ({"kind": "difference", "token": 7, "against": 8}, {"token_id": 7, "against_id": 8}),
        (
            {"kind": "attention", "layer": 1, "head": 0, "position": 1, "key": 0},
            {"attention": "1.0:1:0"},
        ),
        ({"kind": "direction", "layer": 1, "vector": [0.5, 1.0]}, {"direction_layer": 1}),
    ],
    ids=lambda value: value.get("kind", ""),
)
def test_what_is_asked_reaches_the_process_that_computes_it(world, editor, target, options) -> None:
    if target["kind"] == "feature":
        target = {**target, "sae": str(world.sae.pk)}
    answer = editor.post(URL, asked(world, target=target, hops=3, verify=False))
    assert answer.status_code == 202, answer.content
    shown, job = answer.json()["graph"], answer.json()["job"]
    assert (shown["state"], shown["source"], shown["saes"]) == ("pending", "job", [world.sae.fingerprint])
    params = prepared(job["id"])
    assert params.prompt == " one two\n", "white space is part of a prompt"
    assert (params.hops, params.parents, params.verify) == (3, 8, False)
    assert params.sae_path == (str(world.sae.artifact.checkout()),)
    assert params.out is not None
    for name, value in options.items():
        assert getattr(params, name) == value
    params.require_target()
    if target["kind"] == "direction":
        assert params.direction is not None
        with open(params.direction, encoding="utf-8") as stream:
            assert json.load(stream) == [0.5, 1.0]


def test_the_job_leaves_the_graph_its_file_holds(world, editor, run_outcome) -> None:
    answer = editor.post(URL, asked(world)).json()
    document = document_for(world.model, world.sae, prompt=" one two\n")
    result = {"depth": 1, "completeness": 1.0, "edges": [{"from": "a"}], "seconds": 2.0}
    job = run_outcome(answer["job"]["id"], result=result, files={"graph.json": msgspec.json.encode(document)})
    assert Job.objects.get(pk=job.pk).result == {"depth": 1, "completeness": 1.0, "seconds": 2.0}
    graph = editor.get(f"{URL}/{answer['graph']['id']}")
    shown = graph.json()
    assert (shown["state"], shown["depth"], shown["nodes"], shown["edges"]) == ("ready", 1, 2, 1)
    assert (shown["completeness"], shown["verified"], shown["spearman"]) == (1.0, 1, None)
    assert editor.get(f"{URL}/{shown['id']}/document").json() == plain(document)


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"{}", "bad_graph"), (b"", "bad_graph"), (None, "bad_graph")],
)
def test_a_job_that_leaves_no_graph_has_failed(world, editor, run_outcome, content, code) -> None:
    answer = editor.post(URL, asked(world)).json()
    files = {} if content is None else {"graph.json": content}
    with pytest.raises(Exception) as caught:
        run_outcome(answer["job"]["id"], result={}, files=files)
    assert caught.value.code == code


def test_why_a_job_failed_is_said_with_its_graph(world, editor, run_outcome) -> None:
    answer = editor.post(URL, asked(world)).json()
    run_outcome(answer["job"]["id"], error=("does_not_fire", "Feature 3 does not fire there.", ""))
    [shown] = [row for row in editor.get(URL).json()["results"] if row["id"] == answer["graph"]["id"]]
    assert (shown["state"], shown["error"]) == ("failed", "Feature 3 does not fire there.")
    document = editor.get(f"{URL}/{shown['id']}/document")
    assert (document.status_code, error(document)["code"]) == (409, "graph_not_ready")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"target": {"kind": "feature", "sae": "x", "index": 3}}, "bad_target"),
        ({"target": {"kind": "token"}}, "bad_target"),
        ({"target": {"kind": "token", "token": 7, "against": 8}}, "bad_target"),
        ({"target": {"kind": "attention", "layer": 1, "head": 0}}, "bad_target"),
        ({"target": {"kind": "token", "token": 7, "postion": 1}}, "invalid"),
        ({"target": {"kind": "everything"}}, "invalid"),
        ({"hops": 0}, "min_value"),
        ({"shown": 1_000_000}, "max_value"),
        ({"name": ""}, "blank"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_a_job(world, editor, change, code) -> None:
    before = Job.objects.count()
    answer = editor.post(URL, asked(world, **change))
    assert answer.status_code in (400, 422), answer.content
    assert error(answer)["code"] == code
    assert Job.objects.count() == before
    assert not Graph.objects.filter(name="why").exists()


def test_a_feature_beyond_the_width_and_saes_of_another_model_are_refused(world, editor) -> None:
    target = {"kind": "feature", "sae": str(world.sae.pk), "index": world.sae.width}
    assert error(editor.post(URL, asked(world, target=target)))["code"] == "feature_out_of_range"
    other = SaeFactory(recording=RecordingFactory(model=LanguageModelFactory(project=world.project)))
    answer = editor.post(URL, asked(world, saes=[str(world.sae.pk), str(other.pk)]))
    assert (error(answer)["code"], error(answer)["attr"]) == ("another_model", "saes")


def test_an_sae_named_twice_takes_part_once(world, editor) -> None:
    answer = editor.post(URL, asked(world, saes=[str(world.sae.pk)] * 2))
    assert answer.status_code == 202, answer.content
    assert answer.json()["graph"]["saes"] == [world.sae.fingerprint]
    assert prepared(answer.json()["job"]["id"]).sae_path == (str(world.sae.artifact.checkout()),)


def test_a_number_that_none_can_hold_is_called_that(world, editor) -> None:
    url, infinite = f"{URL}/{world.graph.pk}", '{"view": {"least": [0.5, 1e999]}}'
    answer = editor.patch(url, infinite, content_type="application/json")
    assert answer.status_code == 400
    assert (error(answer)["code"], error(answer)["attr"]) == ("number_too_large", "view.least.1")
    target = {"kind": "direction", "layer": 1, "vector": [1.5]}
    body = json.dumps(asked(world, target=target)).replace("1.5", "-1e999")
    answer = editor.post(URL, body, content_type="application/json")
    assert (error(answer)["code"], error(answer)["attr"]) == ("number_too_large", "target.vector.0")


def test_a_clone_explains_what_was_changed_and_says_what_cannot_be(world, editor) -> None:
    first = editor.post(URL, asked(world)).json()
    clone = f"/api/v1/jobs/{first['job']['id']}/clone"
    answer = editor.post(clone, {"name": "why else", "params": {"feature": 5, "hops": 4}}, format="json")
    assert answer.status_code in (200, 201, 202), answer.content
    graph = Graph.objects.get(name="why else")
    assert graph.target["index"] == 5
    assert prepared(str(graph.job_id)).hops == 4
    for params in ({"layer": 1}, {"site": "mlp_out"}, {"direction_layer": 3}):
        refused = editor.post(clone, {"name": "no", "params": params}, format="json")
        assert (error(refused)["code"], error(refused)["attr"]) == ("bad_target", "params"), params
    two = editor.post(clone, {"name": "no", "params": {"token": " a"}}, format="json")
    assert error(two)["code"] in ("two_targets", "bad_target")


# --- kept from a live session, brought in, given out --------------------------------------------------


def test_a_graph_of_a_live_session_is_kept_with_figures_made_anew(world, editor) -> None:
    claimed = g.Summary(depth=7, verified=9, measured=9, seconds=3.0)
    document = document_for(world.model, world.sae, summary=claimed)
    body = {"model": str(world.model.pk), "name": "seen", "document": plain(document)}
    answer = editor.post(f"{URL}/save", body, format="json", headers={"Idempotency-Key": "k"})
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert (shown["source"], shown["state"], shown["depth"], shown["verified"]) == ("live", "ready", 1, 1)
    kept = editor.get(f"{URL}/{shown['id']}/document").json()
    assert (kept["summary"]["depth"], kept["summary"]["seconds"]) == (1, 3.0)
    again = editor.post(f"{URL}/save", body, format="json", headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == shown["id"]
    taken = editor.post(f"{URL}/save", body, format="json")
    assert error(taken)["code"] == "name_taken"


def test_what_was_refused_leaves_no_file(world, editor, files) -> None:
    GraphFactory(model=world.model, name="taken")
    body = {"model": str(world.model.pk), "name": "taken", "document": plain(document_for(world.model))}
    folder = files / "artifacts" / "graph"
    before = {path for path in folder.rglob("*") if path.is_file()}
    assert error(editor.post(f"{URL}/save", body, format="json"))["code"] == "name_taken"
    assert {path for path in folder.rglob("*") if path.is_file()} == before
    assert Artifact.objects.filter(kind="graph").count() == Graph.objects.count()


def test_an_unsound_graph_is_refused_with_what_is_wrong(world, editor) -> None:
    sound = plain(document_for(world.model, world.sae))
    nowhere = {**sound, "edges": [{**sound["edges"][0], "to": "nobody"}]}
    circle = {
        **sound,
        "edges": [*sound["edges"], {**sound["edges"][0], "from": "target", "to": sound["nodes"][1]["id"]}],
    }
    for document, code in ((nowhere, "graph_node_missing"), (circle, "graph_cycle")):
        body = {"project": str(world.project.pk), "name": "bad", "document": document}
        answer = editor.post(f"{URL}/import", body, format="json")
        assert answer.status_code in (400, 422), answer.content
        assert error(answer)["code"] == code
    wrong = editor.post(
        f"{URL}/save", {"model": str(world.model.pk), "name": "bad", "document": {"nodes": 3}}, format="json"
    )
    assert (wrong.status_code, error(wrong)["code"]) == (400, "invalid")
    assert not Graph.objects.filter(name="bad").exists()


def test_a_graph_of_other_weights_is_not_taken_for_the_models(world, editor) -> None:
    world.model.fingerprint = "a" * 32
    world.model.save()
    document = plain(document_for(world.model, model_fingerprint="b" * 32))
    answer = editor.post(
        f"{URL}/save", {"model": str(world.model.pk), "name": "n", "document": document}, format="json"
    )
    assert (error(answer)["code"], error(answer)["attr"]) == ("another_model", "model")


def test_a_file_comes_in_as_it_went_out(world, editor) -> None:
    out = editor.get(f"{URL}/{world.graph.pk}/export?format=microscope")
    assert out["Content-Disposition"].startswith("attachment")
    body = {"project": str(world.project.pk), "name": "again", "document": json.loads(out.content)}
    answer = editor.post(f"{URL}/import", body, format="json")
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert (shown["source"], shown["model"], shown["prompt"]) == ("file", None, "one two")
    again = editor.get(f"{URL}/{shown['id']}/export").content
    assert json.loads(again)["edges"] == json.loads(out.content)["edges"]
    unknown = editor.get(f"{URL}/{shown['id']}/export?format=svg")
    assert error(unknown)["code"] == "unknown_format"


def test_an_attribution_graph_of_others_comes_in_with_its_pins_and_goes_out_again(world, editor) -> None:
    foreign = {
        "metadata": {"slug": "s", "scan": "gemma-2-2b", "prompt": "a b", "prompt_tokens": ["a", " b"]},
        "qParams": {"pinnedIds": ["27_5_1"], "supernodes": [["capital", "1_7_1"]]},
        "nodes": [
            {
                "node_id": "27_5_1",
                "feature": 5,
                "layer": "27",
                "ctx_idx": 1,
                "clerp": "x",
                "feature_type": "logit",
                "token_prob": 0.5,
                "is_target_logit": True,
            },
            {
                "node_id": "1_7_1",
                "feature": 7,
                "layer": "1",
                "ctx_idx": 1,
                "activation": 2.0,
                "feature_type": "cross layer transcoder",
            },
        ],
        "links": [{"source": "1_7_1", "target": "27_5_1", "weight": 0.25}],
    }
    body = {"project": str(world.project.pk), "name": "theirs", "document": foreign}
    answer = editor.post(f"{URL}/import", body, format="json")
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert (shown["source"], shown["nodes"], shown["edges"], shown["verified"]) == ("file", 2, 1, 0)
    assert shown["view"]["pins"] == ["27_5_1"]
    out = json.loads(editor.get(f"{URL}/{shown['id']}/export?format=attribution_graph").content)
    assert out["qParams"]["pinnedIds"] == ["27_5_1"]
    assert [(link["source"], link["weight"]) for link in out["links"]] == [("1_7_1", 0.25)]
    assert out["metadata"]["scan"] == "gemma-2-2b"
    circle = {
        **foreign,
        "links": [*foreign["links"], {**foreign["links"][0], "source": "1_7_1", "target": "1_7_1"}],
    }
    lost = {**foreign, "links": [{"source": "nobody", "target": "27_5_1", "weight": 1.0}]}
    none = {"hello": 1}
    many = {**foreign, "nodes": [{}] * 50_001}
    for document, code in (
        (circle, "graph_cycle"),
        (lost, "graph_node_missing"),
        (none, "graph_file_malformed"),
        (many, "graph_too_large"),
    ):
        refused = editor.post(f"{URL}/import", {**body, "name": "bad", "document": document}, format="json")
        assert refused.status_code in (400, 422), refused.content
        assert error(refused)["code"] == code
    assert not Graph.objects.filter(name="bad").exists()


def test_a_large_file_comes_in_as_an_upload(world, editor, django_capture_on_commit_callbacks) -> None:
    """Longer than a request may be read; the upload is gone afterwards, and it must be one's own."""
    document = document_for(world.model, world.sae)
    content = msgspec.json.encode(document)
    mine = UploadFactory(created_by=world.people["editor"], content=content)
    body = {"project": str(world.project.pk), "name": "large", "upload": str(mine.pk)}
    with django_capture_on_commit_callbacks(execute=True):
        answer = editor.post(f"{URL}/import", body, format="json")
    assert answer.status_code == 201, answer.content
    assert answer.json()["edges"] == 1
    assert not Upload.objects.filter(pk=mine.pk).exists()
    assert not mine.local_path.exists()
    theirs = UploadFactory(created_by=world.people["owner"], content=content)
    part = UploadFactory(created_by=world.people["editor"], content=content)
    Upload.objects.filter(pk=part.pk).update(bytes=len(content) + 1)
    none = UploadFactory(created_by=world.people["editor"], content=b"\x80none")
    for upload, code in (
        (mine, "does_not_exist"),
        (theirs, "does_not_exist"),
        (part, "upload_incomplete"),
        (none, "graph_file_malformed"),
    ):
        refused = editor.post(
            f"{URL}/import", {**body, "name": "no", "upload": str(upload.pk)}, format="json"
        )
        assert error(refused)["code"] == code, refused.content
    assert Upload.objects.filter(pk=none.pk).exists(), "what was refused can be looked at again"
    both = editor.post(f"{URL}/import", {**body, "document": plain(document)}, format="json")
    assert (both.status_code, error(both)["attr"]) == (400, "document")
    assert not Graph.objects.filter(name="no").exists()


# --- SAEs below ---------------------------------------------------------------------------------------


def test_saes_below_are_one_request(world, editor) -> None:
    """Two blocks below an SAE at block 2: recorded in one pass from the same text, trained like the SAE."""
    world.sae.params = {"arch": "topk", "width": [128], "k": [8], "tokens": 5000, "layer": 2}
    world.sae.save()
    body = {"sae": str(world.sae.pk), "trace": {"tokens": 700}}
    answer = editor.post(f"{URL}/upstream", body, format="json", headers={"Idempotency-Key": "k"})
    assert answer.status_code == 202, answer.content
    started = answer.json()
    assert started["layers"] == [0, 1]
    kinds = [job["kind"] for job in started["pipeline"]["jobs"]]
    assert sorted(kinds) == ["analyse", "analyse", "trace", "train", "train"]
    trace = Job.objects.get(pipeline_id=started["pipeline"]["id"], kind="trace")
    assert (trace.params["layers"], trace.params["tokens"], str(trace.subject_id)) == (
        [0, 1],
        700,
        started["recording"],
    )
    trained = Job.objects.filter(pipeline_id=started["pipeline"]["id"], kind="train").order_by("pk")
    assert [job.params["layer"] for job in trained] == [0, 1]
    assert all((job.params["width"], job.params["k"]) == ([128], [8]) for job in trained)
    assert {job.state for job in trained} == {"waiting"}
    assert [str(job.subject_id) for job in trained] == started["saes"]
    again = editor.post(f"{URL}/upstream", body, format="json", headers={"Idempotency-Key": "k"})
    assert again.json()["pipeline"]["id"] == started["pipeline"]["id"]


def test_where_nothing_is_known_it_is_asked_for(world, editor) -> None:
    bare = LanguageModelFactory(project=world.project)
    upstream = f"{URL}/upstream"
    for body, code in (
        ({}, "invalid"),
        ({"model": str(bare.pk), "sae": str(world.sae.pk), "layer": 1}, "invalid"),
        ({"model": str(bare.pk), "layer": 2}, "no_text"),
    ):
        refused = editor.post(upstream, body, format="json")
        assert refused.status_code in (400, 422), refused.content
        assert error(refused)["code"] == code, body
    named = {"model": str(bare.pk), "layer": 99, "corpus": str(world.corpus.pk), "trace": {"tokens": 700}}
    answer = editor.post(upstream, {**named, "train": {"width": 64, "k": 4}}, format="json")
    assert answer.status_code == 202, answer.content
    assert answer.json()["layers"] == [0, 1, 2], "a target above the last block is read behind it"
    for name in ("Below block 3 (2)", "Below block 3 (3)"):
        last = {key: value for key, value in named.items() if key != "layer"}
        answer = editor.post(upstream, {**last, "name": "", "train": {"width": 64, "k": 4}}, format="json")
        assert answer.status_code == 202, answer.content
        assert answer.json()["pipeline"]["name"] == name
    lowest = SaeFactory(recording=world.recording, layer=0)
    refused = editor.post(upstream, {"sae": str(lowest.pk)}, format="json")
    assert error(refused)["code"] == "nothing_below"


def test_a_graph_of_circuit_tracer_comes_in_and_goes_out_again(world, editor) -> None:
    was = json.loads(FOREIGN.read_bytes())
    body = {"project": str(world.project.pk), "name": "austin", "document": was}
    answer = editor.post(f"{URL}/import", body, format="json")
    assert answer.status_code == 201, answer.content
    shown = answer.json()
    assert (shown["nodes"], shown["edges"], shown["verified"], shown["depth"]) == (15, 15, 0, 0)
    assert shown["view"]["pins"] == ["3_16001_4", "5_902_6", "7_9432_6"]
    assert [group["name"] for group in shown["view"]["groups"]] == ["Texas", "Texas (2)"]
    url = f"{URL}/{shown['id']}"
    assert any("gemma-2-2b" in note for note in editor.get(f"{url}/document").json()["notes"])
    editor.patch(url, {"view": {"pins": ["5_902_6"]}}, format="json")
    back = json.loads(editor.get(f"{url}/export?format=attribution_graph").content)
    assert {**back, "qParams": None} == {**was, "qParams": None}
    assert (back["qParams"]["pinnedIds"], back["qParams"]["supernodes"]) == (["5_902_6"], [])
    was["links"].append({"source": "5_902_6", "target": "0_17_1", "weight": 1.0})
    refused = editor.post(f"{URL}/import", {**body, "name": "circle", "document": was}, format="json")
    assert error(refused)["code"] == "graph_cycle"
    other = editor.post(f"{URL}/import", {**body, "name": "other", "document": {"nodes": []}}, format="json")
    assert error(other)["code"] == "graph_file_malformed"
    assert not Graph.objects.filter(name__in=("circle", "other")).exists()


def test_ours_goes_out_for_other_viewers_and_comes_back_whole(world, editor) -> None:
    kept = json.loads(editor.get(f"{URL}/{world.graph.pk}/document").content)
    out = editor.get(f"{URL}/{world.graph.pk}/export?format=attribution_graph")
    assert {"metadata", "qParams", "nodes", "links"} == set(out.json())
    body = {"project": str(world.project.pk), "name": "back", "document": out.json()}
    answer = editor.post(f"{URL}/import", body, format="json")
    assert answer.status_code == 201, answer.content
    again = json.loads(editor.get(f"{URL}/{answer.json()['id']}/document").content)
    assert {**again, "summary": None} == {**kept, "summary": None}


# --- arranged, talked about, deleted ------------------------------------------------------------------


def test_what_is_arranged_on_the_page_is_kept_and_bounded(world, editor, client_of) -> None:
    view = {
        "pins": ["target"],
        "groups": [{"name": "names", "nodes": ["resid_post.2:3@0"]}],
        "threshold": 0.2,
    }
    url = f"{URL}/{world.graph.pk}"
    events = AuditEvent.objects.count()
    answer = editor.patch(url, {"view": view}, format="json", headers={"If-Match": editor.get(url)["ETag"]})
    assert answer.status_code == 200, answer.content
    assert AuditEvent.objects.count() == events, "moving a slider is no news"
    assert client_of("viewer").get(url).json()["view"] == view
    assert "view" not in editor.get(URL).json()["results"][0]
    large = editor.patch(url, {"view": {"pins": ["x" * 1000] * 300}}, format="json")
    assert (large.status_code, error(large)["code"]) == (422, "view_too_large")
    assert editor.get(url).json()["view"] == view


def test_comments(world, editor, client_of) -> None:
    url = f"{URL}/{world.graph.pk}/comments"
    made = editor.post(url, {"text": "And this?"})
    assert made.status_code == 201, made.content
    said = client_of("viewer").get(url).json()
    assert [(row["text"], row["author"]) for row in said] == [
        ("Look at this", world.people["owner"].username),
        ("And this?", world.people["editor"].username),
    ]
    [shown] = [row for row in editor.get(URL).json()["results"] if row["id"] == str(world.graph.pk)]
    assert shown["comments"] == 2
    assert editor.post(url, {"text": ""}).status_code == 400
    other = GraphFactory(model=world.model)
    elsewhere = editor.delete(f"{URL}/{other.pk}/comments/{made.json()['id']}")
    assert elsewhere.status_code == 404, "a comment is found below its own graph only"
    assert editor.delete(f"{url}/{made.json()['id']}").status_code == 204
    assert AuditEvent.objects.filter(action="graph.comment_deleted").get().data["text"] == "And this?"


def test_a_deleted_graph_takes_its_file_and_comments_along(
    world, editor, django_capture_on_commit_callbacks
) -> None:
    folder = world.graph.artifact.local_path
    with django_capture_on_commit_callbacks(execute=True):
        assert editor.delete(f"{URL}/{world.graph.pk}").status_code == 204
    assert not folder.exists()
    assert not GraphComment.objects.filter(pk=world.comment.pk).exists()
    assert not Artifact.objects.filter(kind="graph").exists()


def test_a_graph_at_work_is_not_deleted_and_its_model_neither(world, editor) -> None:
    graph = editor.post(URL, asked(world)).json()["graph"]
    refused = editor.delete(f"{URL}/{graph['id']}")
    assert (refused.status_code, error(refused)["code"]) == (409, "job_active")
    lonely = LanguageModelFactory(project=world.project)
    GraphFactory(model=lonely)
    in_use = editor.delete(f"/api/v1/models/{lonely.pk}")
    assert (in_use.status_code, error(in_use)["code"]) == (409, "in_use")
    assert "graph" in error(in_use)["detail"]


def test_a_graph_outlives_its_sae_but_is_not_computed_again_without_it(world, editor) -> None:
    answer = editor.post(URL, asked(world)).json()
    world.sae.delete()
    assert editor.get(f"{URL}/{world.graph.pk}/document").status_code == 200
    with pytest.raises(Exception) as caught:
        prepared(answer["job"]["id"])
    assert caught.value.code == "unknown_sae"


def test_graphs_are_found_by_what_they_explain(world, editor) -> None:
    graph = editor.post(URL, asked(world)).json()["graph"]
    query = {"sae": world.sae.fingerprint, "index": 3}
    assert [row["id"] for row in editor.get(URL, query).json()["results"]] == [graph["id"]]
    assert editor.get(URL, {**query, "index": 4}).json()["count"] == 0
    assert editor.get(URL, {"source": "live"}).json()["count"] == 1
