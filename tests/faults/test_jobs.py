"""Jobs under fire. Each test ends with the true state of the job, one result, and nobody left running."""

from __future__ import annotations

import json
import os
import signal
import time

import pytest

from apps.artifacts.models import Artifact
from apps.jobs import leases, services
from apps.jobs.models import Job
from tests.factories import UserFactory
from tests.faults.conftest import (
    SHORT_LEASE,
    Worker,
    alive,
    locked_database,
    starts,
    state,
    submit,
    wait_final,
    wait_running,
)
from tests.running import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]


def messages(job: Job) -> list[str]:
    return list(job.events.filter(kind="log").order_by("seq").values_list("message", flat=True))


def child_of(job: Job) -> int:
    return int(json.loads((leases.workdir(job.pk) / "child.json").read_text())["pid"])


def succeeded(job: Job, count: int = 10) -> Job:
    job = wait_final(job)
    assert (job.state, job.result.get("number"), job.error_message) == ("succeeded", count, "")
    assert (job.artifact.checkout() / "number.txt").read_text() == str(count)
    assert Artifact.objects.filter(job=job).count() == 1
    wait_for(lambda: not leases.workdir(job.pk).exists(), what="for the folder to go")
    return job


def one_of_two(stack, **params) -> tuple[Worker, Job]:
    """Two workers, one of which works on a job: that one, and the job."""
    stack.worker(**SHORT_LEASE)
    stack.worker(**SHORT_LEASE)
    job = wait_running(submit(**params), 3)
    assert job.worker is not None
    return next(worker for worker in stack.workers if worker.pid == job.worker.pid), job


@pytest.fixture
def staff(stack):
    return UserFactory(is_staff=True)


@pytest.mark.postgres
def test_a_quiet_day(stack) -> None:
    stack.worker()
    job = succeeded(submit(count=30, delay=0.05), 30)
    assert job.attempt == 1
    assert len(starts(job)) == 1
    assert (job.phase, job.done, job.total, job.unit) == ("counting", 30, 30, "steps")
    kinds = set(job.events.values_list("kind", flat=True))
    assert kinds == {"state", "log", "metrics", "checkpoint"}
    states = [event.data["state"] for event in job.events.filter(kind="state").order_by("seq")]
    assert states == ["claimed", "running", "succeeded"]
    assert job.finished_at is not None
    assert job.started_at is not None
    lasted = (job.finished_at - job.started_at).total_seconds()
    assert job.events.filter(kind="metrics").count() <= lasted + 2  # at most one a second
    environment = (stack.folder / "worker.log").read_text()
    assert "Traceback" not in environment


@pytest.mark.postgres
def test_killed_child_is_started_again_and_continues(stack) -> None:
    stack.worker()
    job = wait_running(submit(pause_at=5), 5)
    os.kill(child_of(job), signal.SIGKILL)
    job = succeeded(job)
    assert job.attempt == 2
    assert len(starts(job)) == 2
    first, second = (line for line in messages(job) if line.startswith("starting at"))
    assert first == "starting at 0"
    assert int(second.removeprefix("starting at ")) >= 5
    assert "killed" in " ".join(job.events.filter(level="warning").values_list("message", flat=True))


def test_child_killed_every_time_fails_with_a_hint(stack) -> None:
    stack.worker()
    job = submit(count=1000, delay=0.05)
    for attempt in (1, 2, 3):
        wait_for(lambda n=attempt: Job.objects.filter(pk=job.pk, state="running", attempt=n).exists(), 60)
        os.kill(child_of(job), signal.SIGKILL)
    job = wait_final(job)
    assert (job.state, job.error_code, job.attempt) == ("failed", "killed", 3)
    assert "memory" in job.error_hint
    assert leases.workdir(job.pk).exists()  # a retry continues


def test_killed_worker_restarted_takes_its_job_back_at_once(stack) -> None:
    long = {"WORKBENCH_LEASE_SECONDS": "600"}  # so it is not the lease that brings it back
    worker = stack.worker(**long)
    job = wait_running(submit(pause_at=5), 5)
    child = child_of(job)
    worker.kill()
    wait_for(lambda: not alive(child), what="for the child to die with its worker")
    stack.worker(**long)
    job = succeeded(job)
    assert job.attempt == 2
    assert len(starts(job)) == 2


@pytest.mark.postgres
def test_killed_worker_replaced_by_another_when_its_lease_ends(stack) -> None:
    # The other is alive before this one dies, so it can only learn of it from the lease.
    doomed, job = one_of_two(stack, pause_at=5)
    doomed.kill()
    assert succeeded(job).attempt == 2


@pytest.mark.postgres
def test_stopped_worker_is_a_zombie_that_cannot_commit(stack) -> None:
    zombie, job = one_of_two(stack, count=120, delay=0.05)
    zombie.freeze()  # its child goes on counting meanwhile
    job = succeeded(job, 120)
    before = Job.objects.values().get(pk=job.pk)
    events = job.events.count()
    zombie.signal(signal.SIGCONT)
    log = stack.folder / "worker.log"
    wait_for(lambda: "lease_lost" in log.read_text(), 60, "for the zombie to notice")
    assert Job.objects.values().get(pk=job.pk) == before
    assert job.events.count() == events
    assert Artifact.objects.filter(job=job).count() == 1
    # the zombie is healthy again and works on
    succeeded(submit(count=2), 2)


def test_cancel_running(stack, staff) -> None:
    worker = stack.worker()
    job = wait_running(submit(count=1000, delay=0.05))
    child = child_of(job)
    services.cancel(actor=staff, job=job)
    job = wait_final(job)
    assert job.state == "cancelled"
    assert not alive(child)
    wait_for(lambda: worker.children == [], what="for the child to go")


def test_cancelled_and_retried_continues(stack, staff) -> None:
    stack.worker()
    job = wait_running(submit(pause_at=5), 5)
    services.cancel(actor=staff, job=job)
    assert wait_final(job).state == "cancelled"
    services.retry(actor=staff, job=job)
    job = succeeded(job)
    assert int(messages(job)[-1].removeprefix("starting at ")) >= 5


def test_cancel_of_a_child_that_will_not_listen(stack, staff) -> None:
    worker = stack.worker()
    job = wait_running(submit(count=1000, delay=0.05, stubborn=True))
    child = child_of(job)
    services.cancel(actor=staff, job=job)
    job = wait_final(job)
    assert job.state == "cancelled"
    assert not alive(child)
    wait_for(lambda: worker.children == [], what="for the child to go")
    notes = " ".join(messages(job))
    assert "SIGTERM" in notes
    assert "SIGKILL" in notes


def test_cancel_queued_needs_no_worker(stack, staff) -> None:
    job = submit()
    services.cancel(actor=staff, job=job)
    assert state(job) == "cancelled"
    stack.worker()
    succeeded(submit())  # its wake-up came later
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("cancelled", 0)


@pytest.mark.postgres
def test_twenty_wakeups_one_run(stack) -> None:
    from apps.jobs.announce import wake_workers

    stack.worker()
    stack.worker()
    job = submit(count=20)
    for _ in range(20):
        assert wake_workers(job.pk)
    job = succeeded(job, 20)
    assert job.attempt == 1
    assert len(starts(job)) == 1


def test_broker_killed_and_started_empty(stack) -> None:
    stack.worker()
    running = wait_running(submit(count=60, delay=0.05))
    stack.valkey.kill()
    queued = submit(count=3)  # its wake-up goes nowhere
    succeeded(running, 60)  # whoever works needs no broker
    assert state(queued) == "queued"
    stack.valkey.start()
    succeeded(queued, 3)


def test_wakeups_wiped_from_the_broker(stack) -> None:
    import redis

    job = submit()
    redis.Redis(unix_socket_path=str(stack.valkey.path)).flushall()
    stack.worker()
    succeeded(job)


def test_shutdown_gives_the_job_back(stack) -> None:
    worker = stack.worker()
    job = wait_running(submit(pause_at=5), 5)
    worker.signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    job.refresh_from_db()
    assert (job.state, job.attempt) == ("queued", 0)
    stack.worker()
    job = succeeded(job)
    assert job.attempt == 1
    assert len(starts(job)) == 2


@pytest.mark.postgres
def test_locked_database(stack) -> None:
    stack.worker()
    job = wait_running(submit(count=40, delay=0.05))
    with locked_database():
        time.sleep(1.5)
    assert succeeded(job, 40).attempt == 1


def test_children_that_fail(stack) -> None:
    stack.worker()
    for behaviour, code, words in (
        ("refuse", "layer_out_of_range", "There is no block 99."),
        ("crash", "crashed", "SIGABRT"),
        ("silent", "no_result", "without saying"),
    ):
        job = wait_final(submit(behaviour=behaviour))
        assert (job.state, job.error_code, job.attempt) == ("failed", code, 1)
        assert words in job.error_message
        if behaviour == "crash":
            assert "Traceback: something broke" in messages(job)


def test_children_that_talk_too_much_or_nonsense(stack) -> None:
    stack.worker()
    job = succeeded(submit(behaviour="chatty"))
    assert "this is no event" in messages(job)
    assert len(messages(job)) == 1000
    assert "the rest is in" in messages(job)[-1]
    job = succeeded(submit(behaviour="nan", count=40, delay=0.05), 40)
    curves = [event.data["metrics"] for event in job.events.filter(kind="metrics")]
    assert curves
    assert all("loss" not in point for point in curves)
