"""What the database and the disk look like after it: ``python -m tests.chaos.verify`` in the site's environment.

Reads the submitted jobs and those asked to be cancelled from standard input, and prints what is wrong, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import django


def check(submitted: list[str], cancelled: set[str]) -> Iterator[str]:
    """Everything that must hold."""
    from apps.jobs.models import Job

    known = {str(pk) for pk in Job.objects.values_list("pk", flat=True)}
    for pk in set(submitted) - known:
        yield f"job {pk} was accepted and is gone"
    chaotic = Job.objects.filter(pk__in=submitted)
    for job in chaotic.select_related("artifact").order_by("pk"):
        name = f"{job.kind} {job.pk}"
        yield from (f"{name}: {text}" for text in _state(job, str(job.pk) in cancelled))
        yield from (f"{name}: {text}" for text in _events(job))
        yield from (f"{name}: {text}" for text in _result(job))
    names = list(chaotic.filter(kind="train").values_list("title", flat=True))
    if len(names) != len(set(names)):
        yield "a request that was sent again made a second job"
    yield from _settled_files()


def _settled_files() -> list[str]:
    """What is left over for longer than a worker needs to clear up behind its last job."""
    deadline = time.monotonic() + 20
    while (found := list(_files())) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _state(job: Any, may_be_cancelled: bool) -> Iterator[str]:
    from apps.jobs.states import FINAL

    if job.state not in FINAL:
        yield f"is {job.state}"
    if job.state == "failed" and (job.error_code not in ("worker_lost", "killed") or job.attempt < 3):
        yield f"failed with {job.error_code} in attempt {job.attempt}: {job.error_message}"
    if job.state == "cancelled" and not may_be_cancelled:
        before = job.after
        if before is None or before.state == "succeeded":
            yield "was cancelled by nobody"


def _events(job: Any) -> Iterator[str]:
    from apps.jobs.states import FINAL, TRANSITIONS, State

    events = list(job.events.order_by("seq"))
    numbers = [event.seq for event in events]
    if numbers != list(range(1, len(numbers) + 1)) or job.event_seq != len(numbers):
        yield f"events are numbered {numbers}, and the job says {job.event_seq}"
    told = [event for event in events if event.kind == "state"]
    if not told or told[0].data["transition"] != "submit":
        yield "does not begin with its submission"
        return
    state = State(told[0].data["state"])
    for event in told[1:]:
        way = TRANSITIONS[event.data["transition"]]
        if state not in way.sources or way.target != event.data["state"]:
            yield f"went from {state} to {event.data['state']} by {event.data['transition']}"
        state = State(event.data["state"])
    if state != job.state:
        yield f"is {job.state}, and its last event says {state}"
    if sum(event.data["state"] in FINAL for event in told) != 1:
        yield "ended more than once"


def _result(job: Any) -> Iterator[str]:
    from apps.artifacts import storage
    from apps.artifacts.models import Artifact
    from apps.features.models import Analysis
    from apps.saes.models import Evaluation, Sae

    done = job.state == "succeeded"
    later = type(job).objects.filter(kind="analyse", subject_id=job.subject_id, state="succeeded")
    replaced = done and job.kind == "analyse" and job != later.order_by("-finished_at").first()
    if Artifact.objects.filter(job=job).count() != int(done and not replaced):
        yield f"is {job.state} and has {Artifact.objects.filter(job=job).count()} artifacts"
    elif done and not replaced:
        place = job.artifact.local_path
        if not place.is_dir():
            yield "has no files"
        elif storage.list_files(place) != job.artifact.files:
            yield "has other files than its manifest says"
        else:
            listed = {entry["path"] for entry in job.artifact.files}
            on_disk = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
            if on_disk != listed:
                yield f"left {sorted(on_disk - listed)} among its files"
    if job.kind == "train":
        sae = Sae.objects.get(pk=job.subject_id)
        if (sae.state == "ready") != done or (done and sae.artifact_id != job.artifact_id):
            yield f"is {job.state}, and its SAE is {sae.state}"
    if job.kind == "evaluate" and Evaluation.objects.filter(job=job).count() != int(done):
        yield "has not exactly one evaluation"
    if job.kind == "analyse" and Analysis.objects.filter(job=job).count() != int(done and not replaced):
        yield "has not exactly one analysis, or one that was replaced is still there"


def _files() -> Iterator[str]:
    from django.conf import settings

    from apps.artifacts.blobs import collect
    from apps.jobs.models import Job

    root = Path(settings.WORKBENCH_JOB_DIR)
    for folder in root.iterdir() if root.is_dir() else ():
        job = Job.objects.filter(pk=UUID(folder.name)).first()
        if job is None or job.state == "succeeded":
            yield f"the folder of job {folder.name} is left, with {sorted(p.name for p in folder.iterdir())}"
    waste = collect(older_than=timedelta(0), dry_run=True)
    # Results that a newer one replaced wait for the daily collection, as they do on a quiet day.
    for category in ("folders", "objects"):
        yield from (f"{category[:-1]} {name} belongs to nobody" for name, _ in waste.get(category, ()))


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "workbench.settings.dev")
    django.setup()
    given = json.load(sys.stdin)
    print(json.dumps(list(check(given["submitted"], set(given["cancelled"])))))
