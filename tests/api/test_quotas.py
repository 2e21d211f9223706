"""Limits of projects and people: measured, refused with numbers, changed by staff, shown."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.jobs import leases
from apps.jobs.models import Job
from apps.jobs.transitions import ABANDONED
from apps.live.models import LiveSeat
from apps.live.seats import LIFETIME, RENEW_SECONDS, keep_seats, take_seat
from apps.projects.models import Quota
from apps.projects.quotas import RESOURCES, Holder, QuotaExceeded, limits_of, used_by
from tests.factories import ArtifactFactory, JobFactory, QuotaFactory, UploadFactory, WorkerNodeFactory

pytestmark = pytest.mark.postgres


def error(response) -> dict:
    return response.json()["errors"][0]


@pytest.fixture
def evaluate(world, editor):
    return lambda: editor.post(f"/api/v1/saes/{world.sae.pk}/evaluate", {"params": {}})


def test_waiting_jobs(world, evaluate) -> None:
    assert Job.objects.filter(project=world.project, state="queued").count() == 1
    QuotaFactory(project=world.project, queued_jobs=2)
    assert evaluate().status_code == 202
    refused = evaluate()
    assert (refused.status_code, error(refused)["code"]) == (429, "quota_queued_jobs")
    assert error(refused)["quota"] == {"limit": 2, "used": 2, "asked": 1, "unit": "jobs", "of": "project"}
    for number in ("2 of 2", "1 more"):
        assert number in error(refused)["detail"]
    Quota.objects.update(queued_jobs=0)
    assert evaluate().status_code == 202


def test_waiting_jobs_of_a_person(world, evaluate, client_of) -> None:
    QuotaFactory(user=world.people["editor"], queued_jobs=1)
    assert evaluate().status_code == 202
    assert error(evaluate())["quota"]["of"] == "user"
    mine = client_of("owner").post(f"/api/v1/saes/{world.sae.pk}/evaluate", {"params": {}})
    assert mine.status_code == 202
    retry = client_of("editor").post(f"/api/v1/jobs/{world.failed_job.pk}/retry")
    assert retry.status_code == 403


def test_waiting_jobs_count_what_starts_again_with_a_job(world, client_of) -> None:
    """A pipeline that broke at its first job comes back whole: all of its jobs need room."""
    Job.objects.filter(project=world.project, state="queued").delete()
    after = world.failed_job
    for _ in range(2):
        after = JobFactory(
            project=world.project,
            after=after,
            state="cancelled",
            finished_at=timezone.now(),
            error_code=ABANDONED,
            pipeline=world.broken_pipeline,
        )
    quota = QuotaFactory(project=world.project, queued_jobs=2)
    again = f"/api/v1/jobs/{world.failed_job.pk}/retry"
    refused = client_of("owner").post(again)
    assert (refused.status_code, error(refused)["quota"]["asked"]) == (429, 3)
    world.failed_job.refresh_from_db()
    assert world.failed_job.state == "failed"
    Quota.objects.filter(pk=quota.pk).update(queued_jobs=3)
    assert client_of("owner").post(again).status_code == 200
    states = Job.objects.filter(pipeline=world.broken_pipeline).order_by("pk").values_list("state", flat=True)
    assert list(states) == ["queued", "waiting", "waiting"]


def test_storage(world, evaluate, editor, settings) -> None:
    used = used_by("storage_bytes", Holder("project", world.project.pk))
    assert used == sum(a.bytes for a in world.project.artifacts.all()) > 0
    QuotaFactory(project=world.project, storage_bytes=used)
    refused = evaluate()
    assert (refused.status_code, error(refused)["code"]) == (413, "quota_storage_bytes")
    Quota.objects.update(storage_bytes=used + 4)
    assert evaluate().status_code == 202

    def bring_in(text: bytes):
        sent = UploadFactory(created_by=world.people["editor"], path="a.txt", content=text)
        body = {"project": str(world.project.pk), "name": f"c{len(text)}", "uploads": [str(sent.pk)]}
        return editor.post("/api/v1/corpora/import", body)

    too_much = bring_in(b"12345")
    assert (too_much.status_code, error(too_much)["quota"]["asked"]) == (413, 5)
    assert bring_in(b"1234").status_code == 202
    QuotaFactory(user=world.people["editor"], storage_bytes=10)
    announced = editor.post("/api/v1/uploads", {"path": "a.json", "bytes": 11})
    assert (announced.status_code, error(announced)["quota"]["limit"]) == (413, 10)


def test_running_jobs_wait_for_their_turn(world) -> None:
    QuotaFactory(project=world.project, running_jobs=1)
    second, other = JobFactory(project=world.project), JobFactory()
    node = WorkerNodeFactory()
    first = leases.claim(job_id=world.job.pk, node=node)
    assert first is not None
    assert leases.claim(job_id=second.pk, node=node) is None
    second.refresh_from_db()
    assert (second.state, second.attempt) == ("queued", 0)
    assert leases.claim(job_id=other.pk, node=node) is not None
    leases.start(job_id=first.pk, token=first.lease_token)
    leases.fail(job=first, token=first.lease_token, code="x", message="x", hint="")
    assert leases.claim(job_id=second.pk, node=node) is not None


def test_compute(world, evaluate) -> None:
    holder, now = Holder("project", world.project.pk), timezone.now()
    Job.objects.filter(project=world.project).delete()
    done = {"project": world.project, "state": "succeeded"}
    JobFactory(**done, started_at=now - timedelta(hours=3), finished_at=now - timedelta(hours=1))
    JobFactory(**done, started_at=now - timedelta(days=90), finished_at=now - timedelta(days=89))
    # the part of a long job that lies before the window does not count
    JobFactory(**done, started_at=now - timedelta(days=40), finished_at=now - timedelta(days=29))
    JobFactory(state="succeeded", started_at=now - timedelta(hours=9), finished_at=now)
    assert used_by("compute_seconds", holder) == pytest.approx(2 * 3600 + 24 * 3600, abs=5)
    QuotaFactory(project=world.project, compute_seconds=3600)
    refused = evaluate()
    assert (refused.status_code, error(refused)["code"]) == (429, "quota_compute_seconds")


def test_live_sessions(world) -> None:
    QuotaFactory(user=world.people["viewer"], live_sessions=1)
    seat = take_seat(user=world.people["viewer"], project_id=world.project.pk)
    with pytest.raises(QuotaExceeded, match="1 of 1 sessions"):
        take_seat(user=world.people["viewer"], project_id=world.project.pk)
    take_seat(user=world.people["editor"], project_id=world.project.pk)
    LiveSeat.objects.filter(pk=seat.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    take_seat(user=world.people["viewer"], project_id=world.project.pk)


def test_a_page_gets_its_live_session_back_however_full_it_is(world) -> None:
    QuotaFactory(project=world.project, live_sessions=2)
    here = {"project_id": world.project.pk}
    viewer, editor, page = world.people["viewer"], world.people["editor"], uuid4()
    first = take_seat(user=viewer, page=page, **here)
    other = take_seat(user=editor, page=uuid4(), **here)
    with pytest.raises(QuotaExceeded):
        take_seat(user=viewer, page=uuid4(), **here)  # another window
    with pytest.raises(QuotaExceeded):
        take_seat(user=world.people["owner"], page=page, **here)  # somebody else who says the same
    again = take_seat(user=viewer, page=page, **here)
    assert keep_seats([first.pk, other.pk, again.pk]) == {first.pk}
    assert used_by("live_sessions", Holder("project", world.project.pk)) == 2


def test_live_sessions_end_with_the_process_that_renews_them(world, django_assert_num_queries) -> None:
    seats = [take_seat(user=world.people["owner"], project_id=world.project.pk).pk for _ in range(5)]
    holder = Holder("user", world.people["owner"].pk)
    LiveSeat.objects.update(expires_at=timezone.now() + timedelta(seconds=1))
    asked = 1 + (connection.vendor == "postgresql")  # PostgreSQL for the time, then all of them at once
    with django_assert_num_queries(asked):
        assert keep_seats(seats) == set()
    assert 2 * RENEW_SECONDS <= LIFETIME.total_seconds() <= 15
    left = LiveSeat.objects.values_list("expires_at", flat=True)
    assert min(left) > timezone.now() + LIFETIME - timedelta(seconds=5)
    # a process that was held up for longer finds its seats again; long after that they are gone
    LiveSeat.objects.update(expires_at=timezone.now() - timedelta(seconds=30))
    assert used_by("live_sessions", holder) == 0
    take_seat(user=world.people["viewer"], project_id=world.project.pk)
    assert keep_seats(seats) == set()
    assert used_by("live_sessions", holder) == 5
    LiveSeat.objects.filter(pk__in=seats[:2]).update(expires_at=timezone.now() - timedelta(hours=1))
    take_seat(user=world.people["viewer"], project_id=world.project.pk)
    assert keep_seats(seats) == set(seats[:2])


def test_usage_is_shown(world, client_of, settings) -> None:
    QuotaFactory(project=world.project, queued_jobs=7)
    ArtifactFactory(project=world.project)
    rows = {
        row["resource"]: row
        for row in client_of("viewer").get(f"/api/v1/projects/{world.project.pk}/usage").json()
    }
    assert set(rows) == set(RESOURCES)
    assert (rows["queued_jobs"]["used"], rows["queued_jobs"]["limit"]) == (1, 7)
    assert rows["queued_jobs"]["own_limit"] == settings.WORKBENCH_QUOTAS["user"]["queued_jobs"]
    assert rows["storage_bytes"]["used"] == sum(a.bytes for a in world.project.artifacts.all())


def test_own_usage_is_shown(world, client_of, settings) -> None:
    """Of the reader alone, over all their projects, with their own limits."""
    editor = world.people["editor"]
    QuotaFactory(user=editor, queued_jobs=5)
    for _ in range(2):  # two projects
        JobFactory(created_by=editor)
    JobFactory(project=world.project)  # somebody else's
    take_seat(user=editor, project_id=world.project.pk)
    UploadFactory(created_by=editor, path="a.txt", content=b"1234567")
    rows = {row["resource"]: row for row in client_of("editor").get("/api/v1/me/usage").json()}
    assert set(rows) == set(RESOURCES)
    assert {name: row["used"] for name, row in rows.items()} == {
        "storage_bytes": 7,
        "queued_jobs": 2,
        "running_jobs": 0,
        "compute_seconds": 0,
        "live_sessions": 1,
    }
    assert rows["queued_jobs"]["limit"] == 5
    assert rows["live_sessions"]["limit"] == settings.WORKBENCH_QUOTAS["user"]["live_sessions"]
    of_project = client_of("editor").get(f"/api/v1/projects/{world.project.pk}/usage").json()
    assert {row["resource"]: (row["own_used"], row["own_limit"]) for row in of_project} == {
        name: (row["used"], row["limit"]) for name, row in rows.items()
    }
    nobody = {row["resource"]: row["used"] for row in client_of("outsider").get("/api/v1/me/usage").json()}
    assert set(nobody.values()) == {0}


def test_staff_see_what_a_person_uses(world, client_of) -> None:
    editor = world.people["editor"]
    QuotaFactory(user=editor, queued_jobs=5, compute_seconds=7200, storage_bytes=0)
    now = timezone.now()
    JobFactory(created_by=editor)
    JobFactory(
        created_by=editor, state="succeeded", started_at=now - timedelta(seconds=3661), finished_at=now
    )
    page = client_of("staff").get(reverse("admin:accounts_user_change", args=[editor.pk])).content.decode()
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    for line in (
        "Waiting jobs: 1 of 5 jobs",
        "Compute in 30 days: 1:01:01 h of 2:00:00 h",
        "Storage: 0 bytes, no limit",
    ):
        assert f"<div>{line}</div>" in page
    assert client_of("staff").get(reverse("admin:accounts_user_add")).status_code == 200


def test_staff_change_limits(world, client_of) -> None:
    staff = client_of("staff")
    body = {"project": str(world.project.pk), "queued_jobs": "3"}
    assert staff.post(reverse("admin:projects_quota_add"), body, format="multipart").status_code == 302
    holder = Holder("project", world.project.pk)
    assert limits_of(holder)["queued_jobs"] == 3
    event = AuditEvent.objects.get(action="quota.changed")
    assert (event.data, event.project_id) == ({"queued_jobs": 3}, world.project.pk)
    both = {**body, "user": str(world.people["owner"].pk)}
    assert staff.post(reverse("admin:projects_quota_add"), both, format="multipart").status_code == 200
    quota = Quota.objects.get()
    gone = staff.post(
        reverse("admin:projects_quota_delete", args=[quota.pk]), {"post": "yes"}, format="multipart"
    )
    assert gone.status_code == 302
    assert limits_of(holder)["queued_jobs"] != 3
    assert AuditEvent.objects.filter(action="quota.removed").exists()
