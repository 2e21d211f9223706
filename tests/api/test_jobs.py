"""Jobs over REST: lists, queue, history, control."""

from __future__ import annotations

import time
from datetime import timedelta
from uuid import uuid4

import msgspec
import pytest
from celery import Celery
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.jobs import leases
from apps.jobs.leases import NewEvent
from apps.jobs.models import Job
from tests.factories import JobFactory, WorkerNodeFactory
from workbench.supervisor import free_port


def error(response) -> dict:
    return response.json()["errors"][0]


def test_queue_position_counts_all_projects(world, foreign, editor) -> None:
    Job.objects.all().delete()
    jobs = [JobFactory(project=p.project) for p in (foreign, world, foreign, world)]
    rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
    assert rows[str(jobs[1].pk)]["queue_position"] == 2
    assert rows[str(jobs[3].pk)]["queue_position"] == 4
    leases.claim(job_id=jobs[0].pk, node=WorkerNodeFactory())
    leases.claim(job_id=jobs[1].pk, node=WorkerNodeFactory())
    rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
    assert rows[str(jobs[1].pk)]["queue_position"] == 0
    assert rows[str(jobs[3].pk)]["queue_position"] == 2


def test_filters(world, editor) -> None:
    def ids(**params) -> set[str]:
        return {row["id"] for row in editor.get("/api/v1/jobs", params).json()["results"]}

    both = {str(world.job.pk), str(world.failed_job.pk)}
    assert ids() == both
    assert ids(state="failed") == {str(world.failed_job.pk)}
    assert ids(active="true") == {str(world.job.pk)}
    assert ids(active="false") == {str(world.failed_job.pk)}
    assert ids(kind="train") == set()
    assert ids(subject=str(world.job.subject_id)) == {str(world.job.pk)}
    assert ids(project=str(world.project.pk)) == both
    assert editor.get("/api/v1/jobs", {"state": "nonsense"}).status_code == 400


def test_detail_has_parameters_and_a_machine_readable_error(world, editor) -> None:
    answer = editor.get(f"/api/v1/jobs/{world.failed_job.pk}").json()
    assert answer["params"]["count"] == 10
    assert answer["job"]["error"]["code"] == "x"
    assert answer["job"]["retryable"] is True
    assert answer["job"]["cancellable"] is False


def test_a_silent_worker_shows(world, editor) -> None:
    leases.claim(job_id=world.job.pk, node=WorkerNodeFactory())
    url = f"/api/v1/jobs/{world.job.pk}"
    assert editor.get(url).json()["job"]["stalled"] is False
    Job.objects.filter(pk=world.job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert editor.get(url).json()["job"]["stalled"] is True


def test_history_from_a_number_on(world, editor) -> None:
    token = leases.claim(job_id=world.job.pk, node=WorkerNodeFactory()).lease_token
    events = [NewEvent(kind="log", message=f"line {i}") for i in range(5)]
    events += [NewEvent(kind="metrics", data={"done": 1, "metrics": {"fvu": 0.5}})]
    leases.report(job_id=world.job.pk, token=token, events=events)
    url = f"/api/v1/jobs/{world.job.pk}/events"
    everything = editor.get(url).json()
    assert [event["seq"] for event in everything["events"]] == list(range(1, 8))
    assert everything["last"] == 7
    assert [e["message"] for e in editor.get(url, {"after": 5}).json()["events"]] == ["line 4", ""]
    metrics = editor.get(url, {"kind": "metrics"}).json()["events"]
    assert [event["data"]["metrics"] for event in metrics] == [{"fvu": 0.5}]
    assert len(editor.get(url, {"kind": ["log", "metrics"]}).json()["events"]) == 6
    for bad in ({"after": "x"}, {"after": "-1"}, {"kind": "nonsense"}, {"after": "9" * 30}):
        assert editor.get(url, bad).status_code == 400


def test_cancel_and_retry_are_audited(world, client_of) -> None:
    owner = client_of("owner")
    cancelled = owner.post(f"/api/v1/jobs/{world.job.pk}/cancel").json()
    assert cancelled["state"] == "cancelled"
    again = owner.post(f"/api/v1/jobs/{world.job.pk}/retry").json()
    assert (again["state"], again["attempt"]) == ("queued", 0)
    refused = owner.post(f"/api/v1/jobs/{world.job.pk}/retry")
    assert (refused.status_code, error(refused)["code"]) == (409, "job_not_finished")
    assert set(AuditEvent.objects.values_list("action", flat=True)) == {"job.cancelled", "job.retried"}


def test_retry_makes_the_subject_pending_again(world, editor, run_outcome) -> None:
    body = {"recording": str(world.recording.pk), "name": "s", "params": {"layer": 1}}
    answer = editor.post("/api/v1/saes", body).json()
    job = run_outcome(answer["job"]["id"], error=("killed", "x", "y"))
    url = f"/api/v1/saes/{answer['sae']['id']}"
    assert editor.get(url).json()["state"] == "failed"
    editor.post(f"/api/v1/jobs/{job.pk}/retry")
    assert editor.get(url).json()["state"] == "pending"


def test_wakeups_leave_after_commit_and_a_dead_broker_is_no_error(
    world, editor, django_capture_on_commit_callbacks, monkeypatch
) -> None:
    from apps.jobs import announce

    sent = []
    monkeypatch.setattr(announce.app, "send_task", lambda name, args, **kw: sent.append((name, args)))
    with django_capture_on_commit_callbacks(execute=True):
        response = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {})
        assert sent == []
    assert sent == [("worker.run_job", [response.json()["job"]["id"]])]

    def dead(*args, **kwargs):
        raise ConnectionError("no broker")

    monkeypatch.setattr(announce.app, "send_task", dead)
    with django_capture_on_commit_callbacks(execute=True):
        response = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {})
    assert response.status_code == 202
    assert Job.objects.get(pk=response.json()["job"]["id"]).state == "queued"


def test_nobody_waits_for_a_broker_that_is_away(monkeypatch, settings) -> None:
    """Celery asks again for some seconds unless told otherwise, and a request would wait for it."""
    from apps.jobs import announce

    sender = Celery("sender")
    sender.conf.update(
        {**settings.CELERY, "broker_url": f"redis://127.0.0.1:{free_port(0)}/0", "imports": []}
    )
    monkeypatch.setattr(announce, "app", sender)
    started = time.monotonic()
    assert announce.wake_workers(uuid4()) is False
    assert time.monotonic() - started < 3  # six seconds, it was


def test_forgotten_jobs_are_announced_once_per_interval(world, monkeypatch, settings) -> None:
    from apps.jobs import leases as module

    sent = []
    monkeypatch.setattr(module, "wake_workers", lambda pk: sent.append(pk) or True)
    settings.WORKBENCH_WAKEUP_SECONDS = 3600
    assert leases.remind() == (0, 0)
    settings.WORKBENCH_WAKEUP_SECONDS = 1e-6
    assert leases.remind() == (1, 1)
    Job.objects.update(queued_at=timezone.now() - timedelta(hours=2))
    settings.WORKBENCH_WAKEUP_SECONDS = 3600
    assert leases.remind() == (1, 0)  # it waits, but was announced just now
    assert sent == [world.job.pk]


def test_job_kinds_describe_their_forms(world, editor) -> None:
    kinds = {kind["name"]: kind for kind in editor.get("/api/v1/job-kinds").json()}
    assert {"inspect_model", "trace", "train", "evaluate", "analyse"} <= set(kinds)
    fields = {field["name"]: field for field in kinds["train"]["fields"]}
    assert fields["k"]["minimum"] == 1
    assert fields["width"]["unit"] == "latents"
    assert fields["layer"]["required"] is True
    # what the portal fills in is not asked for
    assert not {"activations", "out", "resume"} & set(fields)
    assert all(
        field["description"]
        for kind in kinds.values()
        for field in kind["fields"]
        if not kind["name"].startswith("probe")
    )


def test_the_summary_survives_json(world) -> None:
    from apps.jobs.summary import JobSummary, summarise

    job = Job.objects.for_display().get(pk=world.job.pk)
    summary = summarise(job)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=JobSummary) == summary


@pytest.mark.parametrize("wrong", [["params"], {"params": 5}, {"params": []}])
def test_bodies_of_the_wrong_shape(world, editor, wrong) -> None:
    response = editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", wrong)
    assert response.status_code == 400
