"""The limit of subscriptions of the jobs feed, on the consumer itself."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from apps.core.errors import MicroscopeError
from apps.live import messages as m
from apps.live.consumers import MAX_SUBSCRIPTIONS, JobsConsumer


class Feed(JobsConsumer):
    """Everything exists and may be seen; what is said is kept."""

    requests = m.JobsRequest

    def __init__(self) -> None:
        super().__init__()
        self.said: list[Any] = []

    async def say(self, message: Any) -> None:
        self.said.append(message)

    async def join(self, group: str) -> None:
        self.groups_joined.add(group)

    async def part(self, group: str) -> None:
        self.groups_joined.discard(group)

    async def _require_project(self, project: UUID) -> None:
        pass

    async def _project_of(self, job_id: UUID) -> UUID:
        return uuid4()

    async def _snapshot(self, project: UUID) -> list[Any]:
        return []

    async def _events(self, job_id: UUID, after: int) -> tuple[list[Any], int]:
        return [], 0


async def test_what_is_followed_already_may_be_asked_for_again() -> None:
    """As after a gap, or when a page comes back: the limit is for further projects and jobs."""
    feed, job = Feed(), uuid4()
    projects = [uuid4() for _ in range(MAX_SUBSCRIPTIONS - 1)]
    for project in projects:
        await feed.handle(m.Subscribe(project=project))
    await feed.handle(m.Watch(job=job))
    for further in (m.Subscribe(project=uuid4()), m.Watch(job=uuid4())):
        with pytest.raises(MicroscopeError, match="50 subscriptions"):
            await feed.handle(further)
    said = len(feed.said)
    await feed.handle(m.Subscribe(project=projects[0]))
    await feed.handle(m.Watch(job=job))
    assert [type(message) for message in feed.said[said:]] == [m.Snapshot, m.JobEvents]
    await feed.handle(m.Unwatch(job=job))
    await feed.handle(m.Subscribe(project=uuid4()))
    assert len(feed.projects) == MAX_SUBSCRIPTIONS
