"""``kill -9`` of everything around a job that runs: web, beat, Valkey and the agent come back, and the job notices nothing."""

from __future__ import annotations

import contextlib

import psutil
import pytest

from tests.faults.test_training import LONG, checkpoints, events, process_with, training
from tests.running import Lab, kill, wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

AROUND = {
    "web": ("workbench.web",),
    "beat": ("celery", "beat"),
    "agent": ("worker.agent",),
}


def broker(lab: Lab) -> psutil.Process | None:
    for process in lab.site.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "valkey" in process.name():
                return process
    return None


def test_a_job_outlives_everything_around_it(lab: Lab) -> None:
    made = lab.alice.post("/saes", {"recording": lab.recording["id"], "name": "Left alone", "params": LONG})
    job = made["job"]["id"]
    wait_for(lambda: checkpoints(lab, job) >= 1, 120, "for a checkpoint")
    child = training(lab)
    assert child is not None
    for name, words in AROUND.items():
        victim = process_with(lab, *words)
        assert victim is not None, name
        kill(victim)
        wait_for(lambda words=words: process_with(lab, *words), 60, f"for {name} to come back")
    victim = broker(lab)
    assert victim is not None
    kill(victim)
    wait_for(lambda: broker(lab), 60, "for the broker to come back")
    wait_for(lab.site.serves, 120, "for the portal")

    # The wake-up of another job goes through the broker that lost everything, and waits for its turn.
    second = lab.alice.post(f"/saes/{lab.sae['id']}/evaluate")["job"]["id"]
    finished = lab.alice.wait(job, lambda shown: None)
    assert (finished["state"], finished["attempt"], finished["done"]) == ("succeeded", 1, LONG["tokens"])
    numbers = [event["seq"] for event in events(lab, job)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert lab.alice.get(f"/saes/{made['sae']['id']}")["state"] == "ready"
    assert lab.alice.wait(second, lambda shown: None)["state"] == "succeeded"
    lab.alice.delete(f"/saes/{made['sae']['id']}")
    lab.wait_loaded()  # it went with its agent
