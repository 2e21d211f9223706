"""Requests and workers at the same moment, each with a connection of its own: what one gets, no other gets too."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.artifacts.models import Artifact
from apps.jobs import leases, services
from apps.jobs.leases import LeaseLost
from apps.jobs.models import Job
from apps.jobs.states import State
from tests.api.test_job_states import with_output
from tests.factories import JobFactory, ProjectFactory, QuotaFactory, UserFactory, WorkerNodeFactory

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def together(*calls: Callable[[], Any]) -> list[Any]:
    """Do all of it at once; what each returned, or the exception it ended with."""
    start = threading.Barrier(len(calls))
    answers: list[Any] = [None] * len(calls)

    def run(number: int, call: Callable[[], Any]) -> None:
        start.wait(10)
        try:
            answers[number] = call()
        except Exception as error:
            answers[number] = error
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_a_job_is_claimed_once() -> None:
    job, nodes = JobFactory(), [WorkerNodeFactory() for _ in range(6)]
    claims = together(*(lambda node=node: leases.claim(job_id=job.pk, node=node) for node in nodes))
    winners = [claim for claim in claims if claim is not None]
    assert [type(winner) for winner in winners] == [Job]
    job.refresh_from_db()
    assert (job.attempt, job.lease_token) == (1, winners[0].lease_token)
    assert job.events.filter(kind="state").count() == 1


def test_workers_empty_a_queue_without_doing_anything_twice() -> None:
    project = ProjectFactory()
    jobs = {JobFactory(project=project).pk for _ in range(12)}

    nodes = [WorkerNodeFactory() for _ in range(4)]

    def work(node: Any) -> list[Any]:
        done = []
        while (job := leases.claim_next(node=node)) is not None:
            done.append(job.pk)
        return done

    hauls = together(*(lambda node=node: work(node) for node in nodes))
    assert sorted(pk for haul in hauls for pk in haul) == sorted(jobs)
    assert set(Job.objects.values_list("attempt", flat=True)) == {1}


def test_running_jobs_stay_within_the_quota() -> None:
    project = ProjectFactory()
    QuotaFactory(project=project, running_jobs=2)
    jobs = [JobFactory(project=project) for _ in range(5)]
    nodes = [WorkerNodeFactory() for _ in jobs]
    claims = together(
        *(lambda j=j, n=n: leases.claim(job_id=j.pk, node=n) for j, n in zip(jobs, nodes, strict=True))
    )
    assert sum(isinstance(claim, Job) for claim in claims) == 2
    assert sum(claim is None for claim in claims) == 3


def test_waiting_jobs_stay_within_the_quota(world, client_of) -> None:
    QuotaFactory(project=world.project, queued_jobs=3)  # one waits already
    url, clients = f"/api/v1/saes/{world.sae.pk}/evaluate", [client_of("editor") for _ in range(6)]
    answers = together(*(lambda c=client: c.post(url, {"params": {}}) for client in clients))
    assert sorted(answer.status_code for answer in answers) == [202, 202, 429, 429, 429, 429]
    assert Job.objects.filter(project=world.project, state=State.QUEUED).count() == 3


def test_the_same_request_several_times_makes_one_job(world, client_of) -> None:
    url, clients = f"/api/v1/saes/{world.sae.pk}/evaluate", [client_of("editor") for _ in range(6)]
    answers = together(
        *(
            lambda c=client: c.post(url, {"params": {}}, headers={"Idempotency-Key": "k"})
            for client in clients
        )
    )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["job"]["id"] for answer in answers}) == 1
    assert Job.objects.filter(idempotency_key="k").count() == 1


def test_a_lost_job_is_queued_once() -> None:
    job = JobFactory()
    claimed = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    assert claimed is not None
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    assert sum(together(*[leases.reap] * 5)) == 1
    job.refresh_from_db()
    assert (job.state, job.attempt) == (State.QUEUED, 1)


@pytest.mark.parametrize("attempt", range(3))
def test_a_result_and_a_cancellation_end_in_one_of_both(attempt: int, files) -> None:
    staff, job = UserFactory(is_staff=True), JobFactory()
    claimed = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    assert claimed is not None
    token = claimed.lease_token
    leases.start(job_id=job.pk, token=token)
    listing = with_output(job)
    result, _ = together(
        lambda: leases.succeed(job=claimed, token=token, result={}, files=listing, digest=None),
        lambda: services.cancel(actor=staff, job=job),
    )
    job.refresh_from_db()
    if isinstance(result, LeaseLost):
        assert job.state == State.CANCELLING
        assert not Artifact.objects.exists()
        assert leases.confirm_cancel(job=job, token=token).state == State.CANCELLED
    else:
        assert isinstance(result, Job), result
        assert job.state == State.SUCCEEDED
        assert (Artifact.objects.get().checkout() / "number.txt").read_text() == "1"


def test_a_zombie_and_its_successor_commit_one_result(files) -> None:
    job = JobFactory()
    zombie = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    assert zombie is not None
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))
    leases.reap()
    heir = leases.claim(job_id=job.pk, node=WorkerNodeFactory())
    assert heir is not None
    leases.start(job_id=job.pk, token=heir.lease_token)
    listing = with_output(job)
    late, good = together(
        *(
            lambda j=j: leases.succeed(job=j, token=j.lease_token, result={}, files=listing, digest=None)
            for j in (zombie, heir)
        )
    )
    assert isinstance(late, LeaseLost)
    assert isinstance(good, Job)
    assert Artifact.objects.count() == 1


def test_a_piece_that_arrives_twice_is_taken_once(world, client_of) -> None:
    made = client_of("editor").post("/api/v1/uploads", {"path": "a/b.bin", "bytes": 6}).json()
    clients = [client_of("editor") for _ in range(4)]

    def send(client: Any) -> Any:
        return client.generic(
            "PATCH",
            f"/api/v1/uploads/{made['id']}",
            b"abc",
            content_type="application/offset+octet-stream",
            headers={"Upload-Offset": "0"},
        )

    answers = together(*(lambda c=client: send(c) for client in clients))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses[0] == 204
    assert set(statuses[1:]) <= {409, 423}  # too late, or while the first is being written
    assert clients[0].get(f"/api/v1/uploads/{made['id']}").json()["offset"] == 3
