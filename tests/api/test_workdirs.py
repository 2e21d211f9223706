"""Folders of jobs: kept while somebody may go on with them, and never longer than that."""

from __future__ import annotations

import os
import time

from django.utils import timezone

from apps.jobs import leases
from tests.factories import ArtifactFactory, JobFactory
from worker.workdirs import clean_workdirs

WEEK = 7 * 24 * 3600.0


def test_what_may_go(world) -> None:
    artifact = ArtifactFactory(project=world.project)
    done = JobFactory(project=world.project, state="succeeded", finished_at=timezone.now(), artifact=artifact)
    for job in (world.job, world.failed_job, done):
        leases.workdir(job.pk).mkdir(parents=True)
    scratch = artifact.local_path / "checkpoints"
    scratch.mkdir()
    strange = leases.workdir(world.job.pk).with_name("not-a-job")
    strange.mkdir()

    # Its worker died between the result and the broom.
    assert clean_workdirs(WEEK) == 1
    assert not leases.workdir(done.pk).exists()
    assert not scratch.exists()
    long_ago = time.time() - WEEK - 60
    for job in (world.job, world.failed_job):
        os.utime(leases.workdir(job.pk), (long_ago, long_ago))
    assert clean_workdirs(WEEK) == 1
    assert leases.workdir(world.job.pk).exists(), "it will be worked on"
    assert not leases.workdir(world.failed_job.pk).exists()
    assert strange.exists()
