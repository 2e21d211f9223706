"""``kill -9`` of the web process: the live sessions it held stop counting, and who had one gets back in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
import websockets

from apps.live.seats import LIFETIME
from tests.faults.test_training import process_with
from tests.running import Lab, Person, kill, wait_for
from tests.ws.talking import talk

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

SEAT_LOST, TOO_MANY = 4408, 4429


@pytest.fixture
def limited(lab: Lab) -> Iterator[Person]:
    """A member of the project who may have one live session."""
    person = lab.site.person("lee")
    members = f"/projects/{lab.project['id']}/members"
    member = lab.alice.post(members, {"user": "lee", "role": "viewer"})
    quota = "from apps.projects.models import Quota; from apps.accounts.models import User; "
    quota += (
        "Quota.objects.update_or_create(user=User.objects.get(username='lee'), defaults={'live_sessions': 1})"
    )
    lab.site.manage("shell", "-c", quota)
    yield person
    lab.alice.delete(f"{members}/{member['user']}")


def kill_web(lab: Lab) -> float:
    """Returns when it was killed, when another one serves."""
    victim = process_with(lab, "workbench.web")
    assert victim is not None
    killed = time.monotonic()
    kill(victim)
    wait_for(lambda: process_with(lab, "workbench.web"), 60, "for the web process to come back")
    wait_for(lab.site.serves, 120, "for the portal")
    return killed


async def verdict(person: Person, path: str) -> int | None:
    """The code of the refusal, or None when the model's state is told."""
    async with talk(person, path) as socket:
        first = await socket.next()
        return await socket.closed() if first["type"] == "failure" else None


async def test_a_page_gets_its_place_back_from_the_dead_process(lab: Lab, limited: Person) -> None:
    here = f"{lab.live}?page={uuid4()}"
    async with talk(limited, here) as before:
        await before.expect("state")
        assert await verdict(limited, lab.live) == TOO_MANY
        await asyncio.to_thread(kill_web, lab)
        assert await before.closed() == 1006
    came_back = time.monotonic()
    async with talk(limited, here) as after:
        await after.expect("state")  # at once: the seat of the dead process became this one
        assert time.monotonic() - came_back < 5
        assert await verdict(limited, lab.live) == TOO_MANY  # and it is still one


async def test_seats_of_a_dead_process_run_out_within_seconds(lab: Lab, limited: Person) -> None:
    """For whoever does not say which page they are."""
    async with talk(limited, lab.live) as before:
        await before.expect("state")
        # a living process keeps them however long it takes
        for _ in range(3):
            await asyncio.sleep(LIFETIME.total_seconds() / 2)
            assert await verdict(limited, lab.live) == TOO_MANY
        killed = await asyncio.to_thread(kill_web, lab)
    while await verdict(limited, lab.live) == TOO_MANY:
        assert time.monotonic() - killed < LIFETIME.total_seconds() + 10
        await asyncio.sleep(0.5)


async def test_one_page_has_one_session(lab: Lab, limited: Person) -> None:
    """Who connects twice under one name has not got two sessions for one seat: the first is closed."""
    here = f"{lab.live}?page={uuid4()}"
    async with talk(limited, here) as first:
        await first.expect("state")
        async with talk(limited, here) as second:
            await second.expect("state")
            assert await first.closed(15) == SEAT_LOST
            assert first.waiting[-1]["code"] == "seat_lost"
            await second.works()


async def test_a_page_without_a_proper_name_is_told(lab: Lab, limited: Person) -> None:
    async with talk(limited, f"{lab.live}?page=me") as socket:
        assert (await socket.next())["code"] == "bad_page"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.raw.recv()
