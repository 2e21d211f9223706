"""The feed of jobs over a real WebSocket, from a real compute worker through a real broker."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.running import Lab
from tests.ws.talking import talk

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

NOT_FOUND = 4404
FINAL = {"succeeded", "failed", "cancelled"}


def look_again(lab: Lab, name: str, reference: str = "tiny") -> dict[str, Any]:
    """Queue the shortest job there is: a look at a model."""
    body = {"project": lab.project["id"], "name": name, "source": "folder", "reference": reference}
    made: dict[str, Any] = lab.alice.post("/models", body)
    return made


async def test_a_job_from_beginning_to_end(lab: Lab) -> None:
    async with talk(lab.alice, f"/ws/jobs/?project={lab.project['id']}") as feed:
        snapshot = await feed.expect("snapshot")
        assert snapshot["project"] == lab.project["id"]
        listed = await asyncio.to_thread(lab.alice.get, "/jobs", project=lab.project["id"])
        newest = [(job["id"], job["state"]) for job in listed["results"][:5]]
        assert [(job["id"], job["state"]) for job in snapshot["jobs"][:5]] == newest

        made = await asyncio.to_thread(look_again, lab, "tiny again")
        job = made["job"]["id"]
        await feed.send("watch", job=job)
        states: list[str] = []
        numbers: list[int] = []
        events: list[dict[str, Any]] = []
        while not (states and states[-1] in FINAL and events and events[-1]["data"].get("state") in FINAL):
            message = await feed.next(120)
            assert message["type"] in ("job", "events"), message
            if message["type"] == "events":
                assert message["job"] == job
                events += message["events"]
            elif message["job"]["id"] == job and not message["transient"]:
                states.append(message["job"]["state"])
                numbers.append(message["job"]["seq"])
        order = [state for place, state in enumerate(states) if place == 0 or states[place - 1] != state]
        assert order[-3:] == ["claimed", "running", "succeeded"], states
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))  # the browser relies on no gaps
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        told = [event["data"]["state"] for event in events if event["kind"] == "state"]
        assert told[-1] == "succeeded"

        await feed.send("watch", job=job, after=events[-1]["seq"] - 1)
        again = await feed.expect("events")
        assert [event["seq"] for event in again["events"]] == [events[-1]["seq"]]

        await feed.send("unsubscribe", project=lab.project["id"])
        await feed.send("unwatch", job=job)
        await feed.works()
    lab.alice.delete(f"/models/{made['model']['id']}")


async def test_foreign_projects_and_jobs_do_not_exist(lab: Lab) -> None:
    outsider = lab.site.person("mallory")
    job = lab.recording["job"]
    for project in (lab.project["id"], str(uuid4()), "no-id"):
        async with talk(outsider, f"/ws/jobs/?project={project}") as feed:
            assert (await feed.closed(), feed.waiting) == (NOT_FOUND, [])
    async with talk(outsider, "/ws/jobs/") as feed:
        refusals = []
        for message, field, value in (
            ("subscribe", "project", lab.project["id"]),
            ("subscribe", "project", str(uuid4())),
            ("watch", "job", job),
            ("watch", "job", str(uuid4())),
        ):
            await feed.send(message, **{field: value})
            failure = await feed.next()
            assert failure["type"] == "failure"
            refusals.append((failure["code"], failure["message"]))
        assert refusals[0] == refusals[1]
        assert refusals[2] == refusals[3]
        for frame in ("nonsense", '{"type":"watch","job":"no-id"}', '{"type":"open","prompt":"x"}', b"\x00"):
            await feed.raw.send(frame)
            assert (await feed.next())["code"] == "bad_message"
        await feed.works()


async def test_leaving_the_project_closes_the_feed(lab: Lab) -> None:
    viewer = lab.site.person("victor")
    members = f"/projects/{lab.project['id']}/members"
    member = lab.alice.post(members, {"user": "victor", "role": "viewer"})
    async with talk(viewer, f"/ws/jobs/?project={lab.project['id']}") as feed:
        await feed.expect("snapshot")
        lab.alice.delete(f"{members}/{member['user']}")
        assert await feed.closed() == NOT_FOUND
