"""What a job may take: its environment, memory, time and disk, each of a real child under a real worker."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from apps.jobs import leases
from apps.jobs.models import Job
from apps.jobs.services import retry
from tests.factories import UserFactory
from tests.faults.conftest import Stack, submit, wait_final, wait_running
from tests.running import wait_for
from tests.skips import only_on_linux

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]

# What a portal's process has, and what may happen to be exported on the machine it was started on.
SECRETS = {
    "WORKBENCH_SECRET_KEY": "s" * 50,
    "AWS_ACCESS_KEY_ID": "a-key",
    "AWS_SECRET_ACCESS_KEY": "another-key",
    "WORKBENCH_EMAIL_URL": "smtp://me:password@example.org",
    "WORKBENCH_OIDC_CLIENT_SECRET": "oidc",
    "WORKBENCH_METRICS_TOKEN": "metrics",
    "WORKBENCH_RESIDENT_TOKEN": "sesame",
    "WANDB_API_KEY": "wandb",
    "GITHUB_TOKEN": "github",
    "OPENAI_API_KEY": "openai",
    "PGPASSWORD": "postgres",
    "SSH_AUTH_SOCK": "/tmp/agent",
}
NEEDED = {
    "CUDA_VISIBLE_DEVICES": "0",
    "OMP_NUM_THREADS": "1",
    "HTTPS_PROXY": "http://proxy:1",
    "HF_HOME": "/tmp/hf",
}


def child_of(job: Job) -> int:
    note = leases.workdir(job.pk) / "child.json"
    wait_for(note.exists, 20, "for the child to be noted")
    return int(json.loads(note.read_text())["pid"])


def environment_of(pid: int) -> dict[str, str]:
    """As the kernel tells it."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().decode()
    return dict(entry.split("=", 1) for entry in raw.split("\0") if entry)


@only_on_linux
def test_a_child_gets_what_is_listed_and_nothing_else(stack: Stack, tmp_path) -> None:
    stack.worker(
        **SECRETS, **NEEDED, HF_TOKEN="hub", TEAM_SETTING="x", WORKBENCH_CHILD_ENVIRONMENT="TEAM_SETTING"
    )
    here = environment_of(child_of(wait_running(submit(count=3, delay=2, model=str(tmp_path)))))
    assert NEEDED.items() <= here.items()
    assert here["PATH"] == os.environ["PATH"]
    assert here["TEAM_SETTING"] == "x"
    given = {**SECRETS, "HF_TOKEN": "", "DATABASE_URL": "", "REDIS_URL": "", "DJANGO_SETTINGS_MODULE": ""}
    assert given.keys() & here.keys() == set()
    assert [name for name in here if name.startswith("WORKBENCH_")] == []
    values = "\0".join(here.values())
    assert [value for value in SECRETS.values() if value in values] == []

    hub = environment_of(child_of(wait_running(submit(count=3, delay=2, model="some/model"))))
    assert hub["HF_TOKEN"] == "hub"
    assert given.keys() & hub.keys() == {"HF_TOKEN"}


@pytest.mark.parametrize("light", [True, False])
def test_too_much_memory(stack: Stack, light: bool) -> None:
    """Where nothing is computed the system refuses it; elsewhere the worker sees it."""
    name = "WORKBENCH_IMPORT_MEMORY_MB" if light else "WORKBENCH_JOB_MEMORY_MB"
    stack.worker(**{name: "300"})
    job = wait_final(submit(behaviour="greedy", light=light))
    assert (job.state, job.attempt) == ("failed", 1), "the same would happen again"
    assert job.error_code == "memory_limit"
    assert "0.3 " in job.error_message
    assert name in job.error_hint
    assert wait_final(submit(count=3)).state == "succeeded", "the worker is well"


def test_too_much_time(stack: Stack) -> None:
    stack.worker(WORKBENCH_JOB_SECONDS="3")
    job = wait_final(submit(behaviour="busy"))
    assert (job.state, job.error_code, job.attempt) == ("failed", "time_limit", 1)
    assert "3 s" in job.error_message
    # One that listens stops by itself and goes on from where it was.
    job = wait_final(submit(count=100, delay=0.1))
    assert (job.state, job.error_code) == ("failed", "time_limit")
    first = job.done
    assert 0 < first < 100
    retry(actor=UserFactory(is_staff=True), job=job)
    assert wait_final(job).done > first


def test_too_large_a_file(stack: Stack) -> None:
    stack.worker(WORKBENCH_JOB_FILE_GB="1")
    job = wait_final(submit(behaviour="long"))
    assert (job.state, job.error_code) == ("failed", "file_limit")
    assert "1 GiB" in job.error_message
    written = leases.workdir(job.pk) / "out" / "long"
    assert written.stat().st_size == 2**30
    written.unlink()
