"""A disk that fills up: jobs say so and go on when there is room again, and the worker outlives all of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from apps.jobs import services
from tests.factories import UserFactory
from tests.faults.conftest import Stack, submit, wait_final, wait_running
from tests.running import wait_for

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]


class SmallDisk:
    """Two megabytes where the job folders are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._mount("tmpfs", "-o", "size=2m", "tmpfs")

    def _mount(self, kind: str, *options: str) -> None:
        command = ["mount", "-t", kind, *options, str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"A disk of two megabytes is needed; run the tests as root. {done.stderr}")

    def fill(self) -> Callable[[], None]:
        """Use all that is free; returns what frees it again."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        return ballast.unlink

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(stack: Stack) -> Iterator[SmallDisk]:
    made = SmallDisk(Path(settings.WORKBENCH_JOB_DIR))
    try:
        yield made
    finally:
        for worker in stack.workers:
            worker.kill()
        made.unmount()


def test_no_room_to_begin(stack: Stack, disk: SmallDisk) -> None:
    worker, staff = stack.worker(), UserFactory(is_staff=True)
    free = disk.fill()
    job = wait_final(submit(count=3))
    assert (job.state, job.error_code, job.attempt) == ("failed", "disk_full", 1)
    assert "collect_garbage" in job.error_hint
    wait_for(lambda: worker.children == [], what="for the child to go")
    free()
    services.retry(actor=staff, job=job)
    assert wait_final(job).state == "succeeded"


def test_no_room_for_what_the_job_writes(stack: Stack, disk: SmallDisk) -> None:
    stack.worker()
    job = wait_final(submit(behaviour="overfull"))
    assert (job.state, job.error_code) == ("failed", "disk_full")
    assert job.error_message == "The disk is full."
    assert "Free some space" in job.error_hint


def test_a_full_disk_does_not_silence_the_one_who_reads(stack: Stack, disk: SmallDisk) -> None:
    """The log of a child's errors cannot be written; a child nobody listens to would wait for ever."""
    stack.worker()
    job = wait_final(submit(behaviour="full", count=5))
    assert (job.state, job.result["number"]) == ("succeeded", 5)


def test_cancel_on_a_full_disk(stack: Stack, disk: SmallDisk) -> None:
    """The file that asks a child to stop cannot be made: it is signalled instead."""
    worker, staff = stack.worker(), UserFactory(is_staff=True)
    job = wait_running(submit(count=2, delay=60), done=0)
    free = disk.fill()
    services.cancel(actor=staff, job=job)
    assert wait_final(job).state == "cancelled"
    wait_for(lambda: worker.children == [], what="for the child to go")
    free()
