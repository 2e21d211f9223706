"""The order of the queue, and when it says that a job starts and ends."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from apps.jobs import leases, services
from apps.jobs.forecasts import forecast, work
from apps.jobs.models import Job
from apps.jobs.queue import Queued, fair_order
from tests.factories import JobFactory, ProjectFactory, UserFactory, WorkerNodeFactory

pytestmark = pytest.mark.postgres

START = datetime(2026, 1, 1, tzinfo=UTC)
PROJECT = UUID(int=1)


def waiting(number: int, user: str, priority: int = 0, project: UUID = PROJECT) -> Queued:
    return Queued(UUID(int=number), priority, user, project, START + timedelta(seconds=number))


def numbers(jobs: Iterable[Queued]) -> list[int]:
    return [job.id.int for job in jobs]


def test_people_take_turns() -> None:
    queue = [waiting(n, "ann") for n in range(1, 5)] + [waiting(9, "ben")]
    assert numbers(fair_order(queue)) == [1, 9, 2, 3, 4]
    # Ann has been served a moment ago, Ben yesterday
    served = {"ann": START, "ben": START - timedelta(days=1)}
    assert numbers(fair_order(queue, served=served)) == [9, 1, 2, 3, 4]
    # Ann has two jobs running, Ben none
    assert numbers(fair_order(queue, users={"ann": 2})) == [9, 1, 2, 3, 4]


def test_projects_take_turns_where_people_are_equal() -> None:
    other = UUID(int=2)
    queue = [waiting(1, "ann"), waiting(2, "ben", project=other)]
    assert numbers(fair_order(queue, projects={PROJECT: 3})) == [2, 1]


def test_priority_comes_first() -> None:
    queue = [waiting(1, "ann"), waiting(2, "ann", 5), waiting(3, "ben", -1)]
    assert numbers(fair_order(queue)) == [2, 1, 3]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.integers(1, 2)), min_size=1, max_size=25
    )
)
def test_everybody_is_served_and_a_persons_own_jobs_keep_their_order(rows) -> None:
    queue = [
        waiting(n, user, priority, UUID(int=project)) for n, (user, priority, project) in enumerate(rows)
    ]
    sequence = list(fair_order(queue))
    assert sorted(numbers(sequence)) == sorted(numbers(queue))
    assert [job.priority for job in sequence] == sorted((job.priority for job in queue), reverse=True)
    for job in sequence:
        line = [
            o.id.int
            for o in sequence
            if (o.user, o.project, o.priority) == (job.user, job.project, job.priority)
        ]
        assert line == sorted(line)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(-1, 1), st.integers(1, 3)), max_size=25),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3)),
    st.dictionaries(st.sampled_from([UUID(int=n) for n in (1, 2, 3)]), st.integers(0, 3)),
    st.dictionaries(st.sampled_from("abcd"), st.datetimes(timezones=st.just(UTC))),
)
def test_each_turn_is_the_first_of_all_that_are_left(rows, users, projects, served) -> None:
    left = [waiting(n, user, priority, UUID(int=project)) for n, (user, priority, project) in enumerate(rows)]
    sequence = list(fair_order(left, users=users, projects=projects, served=served))
    of_user, of_project = Counter(users), Counter(projects)

    def rank(job: Queued) -> tuple:
        last = served[job.user].timestamp() if job.user in served else -math.inf
        return (-job.priority, of_user[job.user], of_project[job.project], last, job.queued_at)

    for job in sequence:
        assert job == min(left, key=rank)
        left.remove(job)
        of_user[job.user] += 1
        of_project[job.project] += 1
    assert not left


@given(st.integers(1, 30), st.integers(1, 30))
def test_nobody_waits_for_more_than_one_job_of_each_other(many, few) -> None:
    queue = [waiting(n, "ann") for n in range(many)] + [waiting(100 + n, "ben") for n in range(few)]
    users = [job.user for job in fair_order(queue)]
    turns = min(many, few)
    for number in range(turns):
        assert set(users[2 * number : 2 * number + 2]) == {"ann", "ben"}


def test_workers_take_what_is_next_and_not_what_woke_them(db) -> None:
    ann, ben = UserFactory(), UserFactory()
    mine = [JobFactory(created_by=ann) for _ in range(3)]
    late = JobFactory(created_by=ben)
    urgent = JobFactory(created_by=ann, priority=1)
    node = WorkerNodeFactory()
    taken = [leases.claim_next(node=node).pk for _ in range(5)]
    assert taken == [urgent.pk, late.pk, mine[0].pk, mine[1].pk, mine[2].pk]
    assert leases.claim_next(node=node) is None


def finished(kind: str, seconds: float, **params) -> Job:
    end = timezone.now()
    whole = {"count": 10, "delay": 0.02, "stubborn": False, "behaviour": "", **params}
    return JobFactory(
        kind=kind,
        params=whole,
        state="succeeded",
        attempt=1,
        started_at=end - timedelta(seconds=seconds),
        finished_at=end,
    )


def test_estimates_follow_earlier_jobs_of_the_kind(world, editor) -> None:
    Job.objects.all().delete()
    queued = [JobFactory(project=world.project) for _ in range(3)]
    rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
    first = rows[str(queued[0].pk)]
    assert (first["lasts_seconds"], first["starts_in_seconds"]) == (None, None)  # nobody works, nothing known

    for seconds in (50, 60, 1000):
        finished("probe", seconds)
    WorkerNodeFactory()
    rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
    shown = [rows[str(job.pk)] for job in queued]
    assert [row["lasts_seconds"] for row in shown] == [pytest.approx(60, abs=0.01)] * 3
    assert [row["starts_in_seconds"] for row in shown] == pytest.approx([0, 60, 120], abs=0.1)

    WorkerNodeFactory()  # two do it in half the time
    leases.claim(job_id=queued[0].pk, node=WorkerNodeFactory())
    Job.objects.filter(pk=queued[0].pk).update(state="running", done=1, total=11, rate=0.1)
    rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
    assert rows[str(queued[1].pk)]["starts_in_seconds"] == pytest.approx(0, abs=0.1)


def test_work_is_what_the_parameters_ask_for() -> None:
    small, large = {"tokens": 1000, "layers": [3]}, {"tokens": 2000, "layers": [3, 7]}
    assert work("trace", large) == 4 * work("trace", small)
    assert work("train", {"tokens": 10, "width": [64]}) == 640
    assert work("trace", {"of": "another version"}) == 1.0


def test_a_list_of_many_costs_as_many_queries_as_one_of_few(world, editor) -> None:
    def queries() -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            assert editor.get("/api/v1/jobs").status_code == 200
        # PostgreSQL is asked for the time once in a few seconds, whichever request comes then.
        return sum("clock_timestamp" not in query["sql"] for query in captured)

    for _ in range(2):
        JobFactory(project=world.project, created_by=world.people["editor"])
    few = queries()
    for _ in range(30):
        JobFactory(project=world.project, created_by=UserFactory())
    assert queries() == few


def test_only_administrators_set_priorities(world, client_of) -> None:
    url = f"/api/v1/jobs/{world.job.pk}"
    assert client_of("owner").patch(url, {"priority": 5}).status_code == 403
    answer = client_of("staff").patch(url, {"priority": 5})
    assert (answer.status_code, answer.json()["priority"]) == (200, 5)
    assert "priority to 5" in Job.objects.get(pk=world.job.pk).events.get().message
    assert client_of("staff").patch(url, {"priority": 101}).status_code == 400
    services.cancel(actor=world.people["staff"], job=world.job)
    assert client_of("staff").patch(url, {"priority": 1}).json()["errors"][0]["code"] == "job_finished"


def test_positions_are_those_of_all_projects(db) -> None:
    projects = [ProjectFactory(), ProjectFactory()]
    jobs = [JobFactory(project=projects[n % 2]) for n in range(4)]
    found = forecast(jobs)
    assert [found[job.pk].position for job in jobs] == [1, 2, 3, 4]


def test_the_queue_is_played_through_once_while_it_stays_the_same(world, editor) -> None:
    """Reading a list again asks for nothing of the other jobs; a change of the queue is seen at once."""
    ours = [JobFactory(project=world.project) for _ in range(3)]
    others = JobFactory(priority=1)

    def read() -> tuple[bool, list[int]]:
        with CaptureQueriesContext(connection) as captured:
            rows = {row["id"]: row for row in editor.get("/api/v1/jobs").json()["results"]}
        played = any('"queued_at" ASC' in query["sql"] for query in captured)
        return played, [rows[str(job.pk)]["queue_position"] for job in ours]

    assert read() == (True, [3, 4, 5])
    assert read() == (False, [3, 4, 5])
    services.cancel(actor=world.people["staff"], job=others)
    assert read() == (True, [2, 3, 4])
