"""Hosts whose clocks are off judge nothing: what one writes and another reads is timed by the database they share."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.db import connection
from django.utils import timezone

from apps.accounts.tickets import issue_ticket, redeem_ticket
from apps.accounts.tokens import check_token, create_token
from apps.artifacts.models import Upload
from apps.core import clock
from apps.jobs import leases
from apps.jobs.models import Job, WorkerNode
from apps.jobs.summary import summarise
from apps.live.models import LiveSeat, ResidentWorker
from apps.live.seats import seats, take_seat
from apps.live.services import claim_resident
from apps.notifications.models import Delivery
from apps.notifications.services import ping_webhook
from apps.projects.models import Invitation
from apps.projects.quotas import Holder
from tests.factories import JobFactory, WorkerNodeFactory
from tests.skips import only_on_postgresql

pytestmark = pytest.mark.postgres
REAL = timezone.now


@pytest.fixture
def host(monkeypatch):
    """Be a host whose clock is off by so many minutes."""

    def become(minutes: float) -> None:
        monkeypatch.setattr(timezone, "now", lambda: REAL() + timedelta(minutes=minutes))

    return become


@only_on_postgresql
def test_the_time_is_the_databases(db, host) -> None:
    for minutes in (-90, 90):
        host(minutes)
        for moment in (clock.now(), clock.lately()):
            assert abs((moment - REAL()).total_seconds()) < 30
    with connection.cursor() as cursor:
        cursor.execute("SELECT now()")
        began = cursor.fetchone()[0]
    assert clock.now() > began  # it goes on within a transaction, where now() stands still


def test_the_time_goes_on(db) -> None:
    first, second = clock.now(), clock.now()
    assert first.tzinfo is not None
    assert first <= second
    assert abs((clock.lately() - second).total_seconds()) < 10


@only_on_postgresql
@pytest.mark.parametrize("minutes", [-90, 90])
def test_a_host_with_another_clock_takes_no_job_away(minutes, world, host) -> None:
    job = JobFactory(project=world.project)
    claimed = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    assert claimed is not None
    host(minutes)
    assert leases.reap() == 0
    assert not summarise(Job.objects.for_display().get(pk=job.pk)).stalled
    assert WorkerNode.objects.alive(30).count() == 1
    assert leases.renew(job_id=job.pk, token=claimed.lease_token)
    host(0)
    assert leases.reap() == 0
    assert 0 < (Job.objects.get(pk=job.pk).lease_expires_at - REAL()).total_seconds() < 40


@only_on_postgresql
@pytest.mark.parametrize("minutes", [-90, 90])
def test_what_one_host_gives_another_takes(minutes, world, host, client_of) -> None:
    owner = world.people["owner"]
    token, secret = create_token(
        actor=owner, name="t", scopes=["read"], expires_at=REAL() + timedelta(minutes=5)
    )
    text, _ = issue_ticket(token)
    delivery = ping_webhook(actor=owner, hook=world.webhook)
    take_seat(user=owner, project_id=world.project.pk)
    assert claim_resident(model_id=world.model.pk, host="a")
    ResidentWorker.objects.update(state="starting")
    url = f"/api/v1/projects/{world.project.pk}/invitations"
    link = client_of("owner").post(url, {"email": "new@example.org", "role": "viewer"}).json()["link"]
    host(minutes)
    assert check_token(secret).pk == token.pk
    assert redeem_ticket(text) == owner
    assert list(Delivery.objects.due(clock.now())) == [delivery]
    assert seats(Holder("user", owner.pk)) == LiveSeat.objects.count() == 1
    assert not claim_resident(model_id=world.model.pk, host="b")
    assert Invitation.objects.find(link.rsplit("/", 1)[1]) is not None
    made = client_of("owner").post("/api/v1/uploads", {"path": "a.txt", "bytes": 1}).json()["id"]
    left = Upload.objects.get(pk=made).expires_at - REAL()
    assert abs(left.total_seconds() - django_settings.WORKBENCH_UPLOAD_SECONDS) < 60
