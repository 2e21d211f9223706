"""``kill -9`` in the middle of a real training, on the portal as people start it: the job goes on from its checkpoint."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import psutil
import pytest

from tests.running import TRAIN, Lab, alive, kill, wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]

LONG = TRAIN | {"tokens": 1_000_000, "checkpoint_seconds": 0.5}


def process_with(lab: Lab, *words: str) -> psutil.Process | None:
    """The one process of the site whose command line holds all the words."""
    for process in lab.site.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if set(words) <= {*process.cmdline()}:
                return process
    return None


def training(lab: Lab) -> psutil.Process | None:
    return process_with(lab, "microscope", "train")


def events(lab: Lab, job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = lab.alice.get(f"/jobs/{job}/events")["events"]
    return found


def checkpoints(lab: Lab, job: str) -> int:
    return sum(event["kind"] == "checkpoint" for event in events(lab, job))


def test_training_survives_the_death_of_its_process_and_of_its_worker(lab: Lab) -> None:
    made = lab.alice.post("/saes", {"recording": lab.recording["id"], "name": "Killed twice", "params": LONG})
    job = made["job"]["id"]
    wait_for(lambda: checkpoints(lab, job) >= 1, 120, "for a checkpoint")
    child = training(lab)
    assert child is not None
    kill(child)

    second = wait_for(lambda: training(lab), 120, "for the training to start again")
    before = checkpoints(lab, job)
    wait_for(lambda: checkpoints(lab, job) > before, 120, "for a checkpoint of the second attempt")
    worker = process_with(lab, "celery", "worker")
    assert worker is not None
    kill(worker)
    wait_for(lambda: not alive(second), 60, "for the child to die with its worker")

    finished = lab.alice.wait(job, lambda shown: None)
    assert finished["attempt"] == 3
    # Had an attempt begun anew, its first checkpoint would lie before the last one of the attempt before.
    done = [event["data"]["done"] for event in events(lab, job) if event["kind"] == "checkpoint"]
    assert len(done) >= 2
    assert all(earlier < later for earlier, later in itertools.pairwise(done)), done
    assert finished["done"] == LONG["tokens"]
    sae = lab.alice.get(f"/saes/{made['sae']['id']}")
    assert sae["state"] == "ready"
    assert sae["fingerprint"]
    lab.alice.delete(f"/saes/{made['sae']['id']}")
