"""The state machine of jobs: legal ways, fencing, and what random orders of events can never do."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apps.core.errors import MicroscopeError
from apps.core.ids import uuid7
from apps.jobs import leases, services
from apps.jobs.leases import LeaseLost, NewEvent
from apps.jobs.models import Job
from apps.jobs.states import FINAL, LEASED, TRANSITIONS, State
from microscope.params import JobEvent as EngineEvent
from tests.factories import JobFactory, UserFactory, WorkerNodeFactory

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]


@pytest.fixture
def staff(db):
    return UserFactory(is_staff=True)


@pytest.fixture
def node(db):
    return WorkerNodeFactory()


def expire(job: Job) -> None:
    Job.objects.filter(pk=job.pk).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


def with_output(job: Job) -> list[dict]:
    from apps.artifacts import storage
    from apps.jobs.kinds import OUT

    out = leases.workdir(job.pk) / OUT
    out.mkdir(parents=True, exist_ok=True)
    (out / "number.txt").write_text("1")
    return storage.list_files(out)


# --- single ways ------------------------------------------------------------------------------------------


def test_the_good_way(files, node) -> None:
    job = JobFactory()
    claimed = leases.claim(job_id=job.pk, node=node)
    assert (claimed.state, claimed.attempt, claimed.worker) == (State.CLAIMED, 1, node)
    token = claimed.lease_token
    leases.start(job_id=job.pk, token=token)
    done = leases.succeed(job=claimed, token=token, result={"number": 1}, files=with_output(job), digest=None)
    assert done.state == State.SUCCEEDED
    assert done.lease_token is None
    assert (done.artifact.checkout() / "number.txt").read_text() == "1"
    assert [event.data["state"] for event in job.events.order_by("seq")] == [
        "claimed",
        "running",
        "succeeded",
    ]


def test_only_one_of_many_claims(node) -> None:
    job = JobFactory()
    claims = [leases.claim(job_id=job.pk, node=node) for _ in range(20)]
    assert sum(claim is not None for claim in claims) == 1
    assert Job.objects.get().attempt == 1


def test_zombie_cannot_do_anything(files, node) -> None:
    job = JobFactory()
    zombie = leases.claim(job_id=job.pk, node=node)
    old = zombie.lease_token
    leases.start(job_id=job.pk, token=old)
    expire(job)
    assert leases.reap() == 1
    current = leases.claim(job_id=job.pk, node=node)
    leases.start(job_id=job.pk, token=current.lease_token)
    before = Job.objects.values().get()
    listing = with_output(job)

    with pytest.raises(LeaseLost):
        leases.succeed(job=zombie, token=old, result={"number": 666}, files=listing, digest=None)
    with pytest.raises(LeaseLost):
        leases.fail(job=zombie, token=old, code="x", message="x")
    with pytest.raises(LeaseLost):
        leases.confirm_cancel(job=zombie, token=old)
    with pytest.raises(LeaseLost):
        leases.give_back(job=zombie, token=old)
    with pytest.raises(LeaseLost):
        leases.report(job_id=job.pk, token=old, events=[NewEvent(kind="log", message="boo")])
    with pytest.raises(LeaseLost):
        leases.state_of(job_id=job.pk, token=old)
    assert leases.renew(job_id=job.pk, token=old) is False
    assert leases.lose(job=zombie, token=old) is None
    assert Job.objects.values().get() == before
    # its output stayed where it was, for the rightful owner to continue from
    assert (leases.workdir(job.pk) / "out" / "number.txt").exists()


def test_a_result_the_kind_refuses_leaves_everything_as_it_was(files, node) -> None:
    from apps.artifacts.models import Artifact

    job = JobFactory(kind="probe_refused")
    claimed = leases.claim(job_id=job.pk, node=node)
    leases.start(job_id=job.pk, token=claimed.lease_token)
    listing = with_output(job)
    with pytest.raises(MicroscopeError):
        leases.succeed(job=claimed, token=claimed.lease_token, result={}, files=listing, digest=None)
    assert Job.objects.get().state == State.RUNNING
    assert Artifact.objects.count() == 0
    assert (leases.workdir(job.pk) / "out" / "number.txt").exists()


def test_lost_lease_requeues_until_the_attempts_are_used_up(node) -> None:
    job = JobFactory(max_attempts=2)
    for attempt in (1, 2):
        claimed = leases.claim(job_id=job.pk, node=node)
        assert claimed.attempt == attempt
        expire(job)
        leases.reap()
    job.refresh_from_db()
    assert (job.state, job.error_code) == (State.FAILED, "worker_lost")
    assert "attempt 2 of 2" in job.error_message


def test_a_living_lease_is_not_reaped(node) -> None:
    job = JobFactory()
    leases.claim(job_id=job.pk, node=node)
    assert leases.reap() == 0
    job.refresh_from_db()
    assert job.state == State.CLAIMED


def test_drained_attempt_does_not_count(node) -> None:
    job = JobFactory(max_attempts=1)
    claimed = leases.claim(job_id=job.pk, node=node)
    leases.start(job_id=job.pk, token=claimed.lease_token)
    leases.give_back(job=claimed, token=claimed.lease_token)
    again = leases.claim(job_id=job.pk, node=node)
    assert again is not None
    assert again.attempt == 1


def test_cancel_queued_and_running_and_lost(staff, node) -> None:
    queued = services.cancel(actor=staff, job=JobFactory())
    assert queued.state == State.CANCELLED

    job = JobFactory()
    claimed = leases.claim(job_id=job.pk, node=node)
    leases.start(job_id=job.pk, token=claimed.lease_token)
    assert services.cancel(actor=staff, job=job).state == State.CANCELLING
    assert services.cancel(actor=staff, job=job).state == State.CANCELLING  # asking twice is no error
    with pytest.raises(LeaseLost):
        leases.fail(job=claimed, token=claimed.lease_token, code="x", message="x")
    expire(job)
    leases.reap()
    job.refresh_from_db()
    assert job.state == State.CANCELLED  # what was to be stopped is not started again


def test_retry_and_mark_failed(staff, node) -> None:
    job = JobFactory()
    with pytest.raises(MicroscopeError, match="Cancel it first"):
        services.retry(actor=staff, job=job)
    claimed = leases.claim(job_id=job.pk, node=node)
    services.mark_failed(actor=staff, job=job)
    assert leases.renew(job_id=job.pk, token=claimed.lease_token) is False
    again = services.retry(actor=staff, job=job)
    assert (again.state, again.attempt, again.error_code) == (State.QUEUED, 0, "")
    with pytest.raises(MicroscopeError) as refusal:
        services.mark_failed(actor=staff, job=services.cancel(actor=staff, job=job))
    assert refusal.value.code == "job_finished"


def test_fenced_ways_insist_on_a_token() -> None:
    from apps.jobs.transitions import move

    for name, transition in TRANSITIONS.items():
        if transition.fenced:
            with pytest.raises(ValueError):
                move(name, uuid7())


def test_final_states_have_no_way_out_but_retry() -> None:
    ways = {name for name, way in TRANSITIONS.items() if set(way.sources) & set(FINAL)}
    assert ways == {"retry", "retry_waiting"}
    assert not any(State.SUCCEEDED in way.sources for way in TRANSITIONS.values())


def test_progress_and_events_are_numbered(node) -> None:
    job = JobFactory()
    claimed = leases.claim(job_id=job.pk, node=node)
    token = claimed.lease_token
    progress = EngineEvent(type="progress", phase="counting", done=3, total=9, unit="steps", rate=2.0)
    events = [NewEvent(kind="log", message="one"), NewEvent(kind="log", message="two")]
    after = leases.report(job_id=job.pk, token=token, progress=progress, events=events)
    assert (after.phase, after.done, after.total, after.rate) == ("counting", 3, 9, 2.0)
    assert list(job.events.order_by("seq").values_list("seq", flat=True)) == [1, 2, 3]
    assert after.seq == claimed.seq + 1


def test_curves_are_thinned_from_the_old_end(node) -> None:
    job = JobFactory()
    token = leases.claim(job_id=job.pk, node=node).lease_token
    for _ in range(9):
        leases.report(job_id=job.pk, token=token, events=[NewEvent(kind="metrics", data={"done": 1})])
    newest = job.events.filter(kind="metrics").order_by("-seq").first().seq
    assert leases.thin_metrics(job.pk) == 5
    left = list(job.events.filter(kind="metrics").values_list("seq", flat=True))
    assert len(left) == 5
    assert newest in left


# --- random orders ----------------------------------------------------------------------------------------

WORKERS = 3
OPERATIONS = st.one_of(
    st.tuples(
        st.sampled_from(["claim", "start", "report", "renew", "succeed", "fail"]), st.integers(0, WORKERS - 1)
    ),
    st.tuples(st.sampled_from(["confirm_cancel", "give_back", "lose"]), st.integers(0, WORKERS - 1)),
    st.tuples(st.sampled_from(["expire_and_reap", "cancel", "retry", "mark_failed"]), st.just(0)),
)


class Shadow:
    """What the job must be, kept beside the database by the simplest possible rules."""

    def __init__(self) -> None:
        self.state, self.holder, self.attempt, self.successes = State.QUEUED, None, 0, 0

    def end(self, state: State) -> None:
        self.state, self.holder = state, None

    def lost(self, limit: int) -> None:
        if self.state == State.CANCELLING:
            self.end(State.CANCELLED)
        else:
            self.end(State.QUEUED if self.attempt < limit else State.FAILED)

    def act(self, name: str, worker: int, fresh: bool, limit: int) -> None:
        """``fresh``: the token the worker shows is the current one."""
        match name:
            case "claim" if self.state == State.QUEUED:
                self.state, self.holder, self.attempt = State.CLAIMED, worker, self.attempt + 1
            case "start" if fresh and self.state == State.CLAIMED:
                self.state = State.RUNNING
            case "succeed" if fresh and self.state == State.RUNNING:
                self.successes += 1
                self.end(State.SUCCEEDED)
            case "fail" if fresh and self.state in (State.CLAIMED, State.RUNNING):
                self.end(State.FAILED)
            case "confirm_cancel" if fresh and self.state == State.CANCELLING:
                self.end(State.CANCELLED)
            case "give_back" if fresh and self.state in (State.CLAIMED, State.RUNNING):
                self.attempt -= 1
                self.end(State.QUEUED)
            case "lose" if fresh and self.state in LEASED:
                self.lost(limit)
            case "expire_and_reap" if self.state in LEASED:
                self.lost(limit)
            case "cancel" if self.state == State.QUEUED:
                self.end(State.CANCELLED)
            case "cancel" if self.state in (State.CLAIMED, State.RUNNING):
                self.state = State.CANCELLING
            case "retry" if self.state in (State.FAILED, State.CANCELLED):
                self.attempt = 0
                self.end(State.QUEUED)
            case "mark_failed" if self.state not in FINAL:
                self.end(State.FAILED)


def perform(name: str, job: Job, token, staff, node, listing):
    progress = EngineEvent(type="progress", done=1)
    match name:
        case "claim":
            return leases.claim(job_id=job.pk, node=node)
        case "start":
            leases.start(job_id=job.pk, token=token)
        case "report":
            leases.report(job_id=job.pk, token=token, progress=progress, events=[NewEvent(kind="log")])
        case "renew":
            leases.renew(job_id=job.pk, token=token)
        case "succeed":
            # without files: moving folders is tested above, and a rolled back example could not undo it
            leases.succeed(job=job, token=token, result={}, files=listing, digest=None)
        case "fail":
            leases.fail(job=job, token=token, code="x", message="x")
        case "confirm_cancel":
            leases.confirm_cancel(job=job, token=token)
        case "give_back":
            leases.give_back(job=job, token=token)
        case "lose":
            leases.lose(job=job, token=token)
        case "expire_and_reap":
            Job.objects.filter(pk=job.pk, state__in=LEASED).update(
                lease_expires_at=timezone.now() - timedelta(seconds=1)
            )
            leases.reap()
        case "cancel":
            services.cancel(actor=staff, job=job)
        case "retry":
            services.retry(actor=staff, job=job)
        case "mark_failed":
            services.mark_failed(actor=staff, job=job)
    return None


@settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(operations=st.lists(OPERATIONS, min_size=1, max_size=25), limit=st.integers(1, 3))
def test_random_orders(operations, limit, staff, node, files) -> None:
    """Whatever happens in whatever order, workers with old tokens included, the row is what the rules say."""
    with transaction.atomic():
        job = JobFactory(kind="probe_bare", max_attempts=limit)
        shadow = Shadow()
        tokens = [uuid7() for _ in range(WORKERS)]
        for name, worker in operations:
            before = Job.objects.get(pk=job.pk)
            fresh = before.lease_token is not None and before.lease_token == tokens[worker]
            try:
                claimed = perform(name, before, tokens[worker], staff, node, [])
            except (LeaseLost, MicroscopeError):
                claimed = None
            if claimed is not None:
                tokens[worker] = claimed.lease_token
            shadow.act(name, worker, fresh, limit)
            now = Job.objects.get(pk=job.pk)
            assert (now.state, now.attempt) == (shadow.state, shadow.attempt), name
            assert (now.lease_token is not None) == (now.state in LEASED)
            assert shadow.successes <= 1
        numbers = list(job.events.order_by("seq").values_list("seq", flat=True))
        assert numbers == list(range(1, len(numbers) + 1))
        transaction.set_rollback(True)
