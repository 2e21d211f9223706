"""Health, metrics, the doctor, and the first page of the administration."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.db.migrations.recorder import MigrationRecorder
from django.urls import reverse
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from apps.jobs.models import Job
from tests.factories import JobFactory, ResidentWorkerFactory, WorkerNodeFactory


def scrape(client, **headers) -> dict[str, float]:
    answer = client.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.content
    samples = {}
    for family in text_string_to_metric_families(answer.content.decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


def test_alive_and_ready(client, db) -> None:
    assert client.get("/livez").content == b"ok\n"
    assert client.get("/readyz").json() == {"ready": True, "database": True, "migrations": True}
    MigrationRecorder.Migration.objects.filter(app="jobs").order_by("-id").first().delete()
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["migrations"]) == (503, False)


def test_metrics_tell_the_state_of_the_database(world, client_of) -> None:
    now = timezone.now()
    Job.objects.all().delete()
    JobFactory(queued_at=now - timedelta(seconds=100))
    JobFactory(state="succeeded", started_at=now - timedelta(seconds=40), finished_at=now)
    JobFactory(state="succeeded", started_at=now - timedelta(seconds=20), finished_at=now)
    WorkerNodeFactory()
    WorkerNodeFactory(heartbeat_at=now - timedelta(hours=1))
    ResidentWorkerFactory(model=world.model, state="ready", address="unix:x", memory_bytes=1000)
    client = client_of("staff")
    client.get("/api/v1/jobs")
    seen = scrape(client)
    assert seen["workbench_jobs{state=queued}"] == 1
    assert seen["workbench_jobs{state=succeeded}"] == 2
    assert seen["workbench_jobs{state=waiting}"] == 0
    assert 100 <= seen["workbench_queue_oldest_seconds"] < 160
    assert (seen["workbench_workers"], seen["workbench_workers_silent"]) == (1, 1)
    assert seen["workbench_resident_memory_bytes"] == 1000
    assert seen["workbench_job_seconds_count{kind=probe,state=succeeded}"] == 2
    assert seen["workbench_job_seconds_sum{kind=probe,state=succeeded}"] == pytest.approx(60, abs=0.1)
    before = seen["workbench_http_request_seconds_count{method=GET,status=200}"]
    assert scrape(client)["workbench_http_request_seconds_count{method=GET,status=200}"] == before + 1
    assert "workbench_ws_toggles_total" in seen


def test_metrics_are_for_staff_or_the_token(world, client_of, settings) -> None:
    for person in ("anonymous", "outsider", "owner"):
        assert client_of(person).get("/metrics").status_code == 403
    stranger = client_of("anonymous")
    # no token is set: an empty one opens nothing
    assert stranger.get("/metrics", headers={"Authorization": "Bearer "}).status_code == 403
    settings.WORKBENCH_METRICS_TOKEN = "scrape-me"
    assert stranger.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 403
    assert "workbench_workers" in scrape(stranger, Authorization="Bearer scrape-me")


def doctor() -> tuple[int, dict[str, list[dict]]]:
    out, status = StringIO(), 0
    try:
        call_command("doctor", "--json", stdout=out)
    except SystemExit as end:
        status = int(str(end.code))
    found: dict[str, list[dict]] = {}
    for finding in json.loads(out.getvalue()):
        found.setdefault(finding["name"], []).append(finding)
    return status, found


def test_the_doctor_names_what_is_wrong_and_the_remedy(world, settings) -> None:
    status, found = doctor()
    assert {"database", "migrations", "broker", "workers", "residents", "disk", "artifacts"} <= set(found)
    assert found["database"][0]["level"] == found["migrations"][0]["level"] == "ok"
    assert found["artifacts"][0]["level"] == "ok"
    assert found["workers"][0]["level"] == "error"  # jobs wait and nobody works
    assert "celery" in found["workers"][0]["remedy"]
    assert status == 1

    WorkerNodeFactory()
    shutil.rmtree(world.artifact.checkout())
    settings.WORKBENCH_ENGINE_PYTHON = "/nowhere/python"
    MigrationRecorder.Migration.objects.filter(app="jobs").order_by("-id").first().delete()
    _, found = doctor()
    assert [finding["level"] for finding in found["workers"]] == ["ok", "warning"]
    assert str(world.artifact.pk) in " ".join(finding["text"] for finding in found["artifacts"])
    assert "upgrade" in found["migrations"][0]["remedy"]
    for finding in (f for group in found.values() for f in group if f["level"] == "error"):
        assert finding["remedy"], finding


def test_the_control_room(world, client_of) -> None:
    page = client_of("staff").get(reverse("admin:index")).content.decode()
    assert f'href="{reverse("admin:projects_quota_changelist")}">quotas</a>' in page
    assert "1 queued" in page
    assert world.project.name in page
    assert "free of" in page


def test_priorities_in_bulk(world, client_of) -> None:
    url = reverse("admin:jobs_job_changelist")
    body = {"action": "raise_priority", "_selected_action": [str(world.job.pk)]}
    client_of("staff").post(url, body, format="multipart")
    assert Job.objects.get(pk=world.job.pk).priority == 1
