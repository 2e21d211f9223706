"""Chains of jobs: submitted at once, run in order, cancelled with a reason, continued where they broke."""

from __future__ import annotations

import pytest

from apps.core.errors import MicroscopeError
from apps.jobs import leases, services
from apps.jobs.models import Job, Pipeline
from apps.notifications.models import Notification
from apps.registry.models import Recording, ResultState
from apps.saes.models import Sae
from tests.factories import JobFactory, RecordingFactory, UserFactory, WorkerNodeFactory

TRACED = {"fingerprint": "f1", "tokens": 500}
TRAINED = {"fingerprint": "s1", "architecture": "topk", "n_latents": 64, "k": 4}


def start(editor, world, **values):
    body = {
        "name": "Whole way",
        "model": str(world.model.pk),
        "corpus": str(world.corpus.pk),
        "trace": {"layers": [2], "tokens": 500},
        "train": {"layer": 2, "width": 64, "k": 4},
        **values,
    }
    return editor.post("/api/v1/pipelines", {k: v for k, v in body.items() if v is not ...})


def steps(answer) -> dict[str, dict]:
    return {job["kind"]: job for job in answer.json()["pipeline"]["jobs"]}


def states(pipeline_id) -> dict[str, str]:
    return dict(Job.objects.filter(pipeline_id=pipeline_id).values_list("kind", "state"))


def test_the_whole_way(editor, world, run_outcome) -> None:
    answer = start(editor, world)
    assert answer.status_code == 202, answer.content
    jobs = steps(answer)
    assert list(jobs) == ["trace", "train", "evaluate", "analyse"]
    assert [jobs[kind]["state"] for kind in jobs] == ["queued", "waiting", "waiting", "waiting"]
    assert jobs["train"]["after"] == jobs["trace"]["id"]
    assert jobs["evaluate"]["after"] == jobs["analyse"]["after"] == jobs["train"]["id"]
    made = answer.json()["pipeline"]
    assert (made["state"], made["cancellable"], made["retryable"]) == ("running", True, False)
    assert leases.claim(job_id=jobs["train"]["id"], node=WorkerNodeFactory()) is None  # it is not its turn

    run_outcome(jobs["trace"]["id"], result=TRACED, files={"part.parquet": b"x"})
    assert states(made["id"])["train"] == "queued"
    assert states(made["id"])["evaluate"] == "waiting"
    run_outcome(jobs["train"]["id"], result=TRAINED, files={"sae.safetensors": b"x"})
    assert states(made["id"]) == {
        "trace": "succeeded",
        "train": "succeeded",
        "evaluate": "queued",
        "analyse": "queued",
    }
    sae = Sae.objects.get(pk=answer.json()["sae"])
    assert (sae.state, sae.recording_id) == (ResultState.READY, Recording.objects.get(name="Whole way").pk)
    run_outcome(
        jobs["evaluate"]["id"], result={"metrics": {"fvu": 0.1}, "goals": []}, files={"report.json": b"{}"}
    )
    assert Notification.objects.count() == 0  # nobody wants to hear of every step
    from tests.factories import details_file

    run_outcome(
        jobs["analyse"]["id"], result={"analysis": {"tokens": 5}}, files={"details.jsonl": details_file(3)}
    )
    shown = editor.get(f"/api/v1/pipelines/{made['id']}").json()
    assert (shown["state"], shown["cancellable"], shown["retryable"]) == ("succeeded", False, False)
    note = Notification.objects.get()
    assert (note.user, note.level) == (world.people["editor"], "success")
    assert "all 4 steps" in note.title


def test_a_failed_step_cancels_what_needs_it_and_retry_continues_there(editor, world, run_outcome) -> None:
    answer = start(editor, world)
    jobs, pipeline = steps(answer), answer.json()["pipeline"]["id"]
    run_outcome(jobs["trace"]["id"], result=TRACED, files={"part.parquet": b"x"})
    run_outcome(jobs["train"]["id"], error=("out_of_memory", "No memory at batch 4096.", "Try 2048."))
    assert states(pipeline) == {
        "trace": "succeeded",
        "train": "failed",
        "evaluate": "cancelled",
        "analyse": "cancelled",
    }
    follower = editor.get(f"/api/v1/jobs/{jobs['analyse']['id']}").json()["job"]
    assert follower["error"]["code"] == "job_before_ended"
    assert "Train Whole way" in follower["error"]["message"]
    assert "failed" in follower["error"]["message"]
    assert [note.kind for note in Notification.objects.all()] == ["job.failed"]
    assert Notification.objects.get().subject_id == Job.objects.get(pk=jobs["train"]["id"]).pk

    # what depends on a failed job cannot be started by itself
    refused = editor.post(f"/api/v1/jobs/{jobs['evaluate']['id']}/retry")
    assert (refused.status_code, refused.json()["errors"][0]["code"]) == (409, "job_before_ended")

    again = editor.post(f"/api/v1/pipelines/{pipeline}/retry")
    assert again.status_code == 200
    assert states(pipeline) == {
        "trace": "succeeded",
        "train": "queued",
        "evaluate": "waiting",
        "analyse": "waiting",
    }
    assert Job.objects.get(pk=jobs["evaluate"]["id"]).error_code == ""
    assert Sae.objects.get(pk=answer.json()["sae"]).state == ResultState.PENDING
    assert (
        editor.post(f"/api/v1/pipelines/{pipeline}/retry").json()["errors"][0]["code"]
        == "pipeline_not_broken"
    )


def test_a_failure_at_the_root_reaches_the_leaves(editor, world, run_outcome) -> None:
    answer = start(editor, world)
    jobs, pipeline = steps(answer), answer.json()["pipeline"]["id"]
    run_outcome(jobs["trace"]["id"], error=("x", "Broken.", ""))
    assert states(pipeline) == {
        "trace": "failed",
        "train": "cancelled",
        "evaluate": "cancelled",
        "analyse": "cancelled",
    }
    reasons = set(
        Job.objects.filter(pipeline_id=pipeline, state="cancelled").values_list("error_message", flat=True)
    )
    assert reasons == {"“Record Whole way” failed."}  # the cause, not the step between
    assert Sae.objects.get(pk=answer.json()["sae"]).state == ResultState.FAILED
    # trying the root again is enough
    editor.post(f"/api/v1/jobs/{jobs['trace']['id']}/retry")
    assert states(pipeline) == {
        "trace": "queued",
        "train": "waiting",
        "evaluate": "waiting",
        "analyse": "waiting",
    }


def test_cancel_stops_all_and_retry_brings_all_back(editor, world, run_outcome) -> None:
    answer = start(editor, world)
    jobs, pipeline = steps(answer), answer.json()["pipeline"]["id"]
    node = WorkerNodeFactory()
    running = leases.claim(job_id=jobs["trace"]["id"], node=node)
    cancelled = editor.post(f"/api/v1/pipelines/{pipeline}/cancel").json()
    assert cancelled["state"] == "running"  # its first step is being stopped
    leases.confirm_cancel(job=running, token=running.lease_token)
    assert set(states(pipeline).values()) == {"cancelled"}
    assert editor.post(f"/api/v1/pipelines/{pipeline}/cancel").status_code == 409
    assert Notification.objects.count() == 0
    editor.post(f"/api/v1/pipelines/{pipeline}/retry")
    assert states(pipeline)["trace"] == "queued"
    assert {states(pipeline)[kind] for kind in ("train", "evaluate", "analyse")} == {"waiting"}


def test_one_refused_step_leaves_nothing_behind(editor, world) -> None:
    def count():
        return [model.objects.count() for model in (Job, Recording, Pipeline)]

    before = count()
    refused = start(editor, world, train={"layer": 3, "width": 64, "k": 4})
    assert refused.json()["errors"][0]["code"] == "layer_not_recorded"
    refused = start(editor, world, evaluate={"loss_contexts": -1})
    assert refused.json()["errors"][0]["code"] == "bad_parameters"
    assert count() == before


def test_steps_can_be_left_out_and_a_recording_given(editor, world) -> None:
    recording = RecordingFactory(model=world.model, corpus=world.corpus)
    fresh = {"model": ..., "corpus": ..., "trace": ...}
    answer = start(editor, world, recording=str(recording.pk), evaluate=None, **fresh)
    assert answer.status_code == 202, answer.content
    assert {kind: job["state"] for kind, job in steps(answer).items()} == {
        "train": "queued",
        "analyse": "waiting",
    }
    both = start(editor, world, recording=str(recording.pk))
    assert both.json()["errors"][0]["attr"] == "recording"
    neither = start(editor, world, corpus=...)
    assert neither.json()["errors"][0]["attr"] == "corpus"


def test_the_same_key_is_the_same_pipeline(editor, world) -> None:
    def post():
        body = {
            "name": "Once",
            "recording": str(world.recording.pk),
            "train": {"layer": 2, "width": 64, "k": 4},
        }
        return editor.post("/api/v1/pipelines", body, headers={"Idempotency-Key": "k1"}).json()

    first, second = post(), post()
    assert first["pipeline"]["id"] == second["pipeline"]["id"]
    assert (first["sae"], first["recording"]) == (second["sae"], second["recording"])
    assert Pipeline.objects.filter(name="Once").count() == 1


def test_submitting_after_a_job_that_is_over(db) -> None:
    staff = UserFactory(is_staff=True)

    def after(job):
        whole = {"count": 1}
        return services.submit(
            actor=staff, project=job.project, kind="probe", title="n", subject=job, params=whole, after=job
        )

    from django.utils import timezone

    assert after(JobFactory(state="succeeded", finished_at=timezone.now())).state == "queued"
    with pytest.raises(MicroscopeError) as refusal:
        after(JobFactory(state="failed", finished_at=timezone.now()))
    assert refusal.value.code == "job_before_ended"


# --- clones -----------------------------------------------------------------------------------------------


def test_clone_with_changes(editor, world, run_outcome) -> None:
    body = {"recording": str(world.recording.pk), "name": "a", "params": {"layer": 2, "width": 64, "k": 4}}
    job = editor.post("/api/v1/saes", body).json()["job"]
    url = f"/api/v1/jobs/{job['id']}/clone"
    assert editor.post(url, {"params": {"k": 8}}).json()["errors"][0]["code"] == "name_missing"
    answer = editor.post(url, {"params": {"k": 8}, "name": "b"})
    assert answer.status_code == 202, answer.content
    clone, original = (Job.objects.get(pk=pk) for pk in (answer.json()["id"], job["id"]))
    assert clone.params == {**original.params, "k": [8]}
    assert Sae.objects.get(pk=clone.subject_id).name == "b"
    assert editor.post(url, {"params": {"k": 8}, "name": "b"}).json()["errors"][0]["code"] == "name_taken"
    assert (
        editor.post(url, {"params": {"k": 999}, "name": "c"}).json()["errors"][0]["code"] == "k_above_width"
    )


def test_clones_of_other_kinds(editor, world) -> None:
    recorded = editor.post(
        "/api/v1/recordings",
        {
            "model": str(world.model.pk),
            "corpus": str(world.corpus.pk),
            "name": "r",
            "params": {"layers": [1]},
        },
    ).json()["job"]
    again = editor.post(f"/api/v1/jobs/{recorded['id']}/clone", {"params": {"layers": [1, 2]}, "name": "r2"})
    assert Recording.objects.get(name="r2").layers == [1, 2]
    assert again.json()["kind"] == "trace"
    for path in ("evaluate", "analyse"):
        job = editor.post(f"/api/v1/saes/{world.sae.pk}/{path}").json()["job"]
        again = editor.post(f"/api/v1/jobs/{job['id']}/clone")
        assert (again.status_code, again.json()["subject_id"]) == (202, str(world.sae.pk))
    exported = editor.post(f"/api/v1/saes/{world.sae.pk}/export", {"params": {"format": "saelens"}}).json()[
        "job"
    ]
    again = editor.post(f"/api/v1/jobs/{exported['id']}/clone", {"params": {"format": "sparsify"}})
    assert (again.status_code, again.json()["subject_id"]) == (202, str(world.sae.pk))
    assert Job.objects.get(pk=again.json()["id"]).params["format"] == "sparsify"
    refused = editor.post(f"/api/v1/jobs/{world.job.pk}/clone")
    assert refused.json()["errors"][0]["code"] == "not_cloneable"
