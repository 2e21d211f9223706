"""Fixtures of the API tests."""

from __future__ import annotations

import json
import subprocess

import msgspec
import pytest

from apps.artifacts import services as artifacts
from apps.artifacts import storage
from apps.jobs import leases
from apps.jobs.kinds import OUT, get_kind
from apps.jobs.models import Job
from tests.factories import WorkerNodeFactory


@pytest.fixture
def run_outcome(db, files):
    """Bring a job to its end the way a worker does, with a result the test invents."""

    def run(job_id, *, result=None, files=None, error=None) -> Job:
        job = leases.claim(job_id=job_id, node=WorkerNodeFactory())
        leases.start(job_id=job.pk, token=job.lease_token)
        if error is not None:
            code, message, hint = error
            return leases.fail(job=job, token=job.lease_token, code=code, message=message, hint=hint)
        out = leases.workdir(job.pk) / OUT
        out.mkdir(parents=True, exist_ok=True)
        for name, content in (files or {}).items():
            (out / name).write_bytes(content)
        digest = get_kind(job.kind).digest(job, result, out)
        return leases.succeed(
            job=job, token=job.lease_token, result=result, files=storage.list_files(out), digest=digest
        )

    return run


@pytest.fixture
def run_child(db, files, django_capture_on_commit_callbacks):
    """Do a job with the child process a worker would start, and bring it to its end."""

    def run(job_id) -> Job:
        job = leases.claim(job_id=job_id, node=WorkerNodeFactory())
        leases.start(job_id=job.pk, token=job.lease_token)
        kind, workdir = get_kind(job.kind), leases.workdir(job.pk)
        workdir.mkdir(parents=True, exist_ok=True)
        config = workdir / "config.json"
        config.write_bytes(msgspec.json.encode(kind.prepare(job, workdir)))
        command = [*kind.command(), "--config", str(config), "--events", "-"]
        done = subprocess.run(command, cwd=workdir, capture_output=True, text=True, check=False)
        events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        last = events[-1] if events else {"type": "error", "code": "silent", "message": done.stderr[-2000:]}
        with django_capture_on_commit_callbacks(execute=True):
            if last["type"] != "result":
                code, message = last["code"], last["message"]
                return leases.fail(
                    job=job, token=job.lease_token, code=code, message=message, hint=last.get("hint", "")
                )
            out = workdir / OUT
            digest = kind.digest(job, last["result"], out)
            listed = artifacts.list_folder(out) if kind.artifact else []
            return leases.succeed(
                job=job, token=job.lease_token, result=last["result"], files=listed, digest=digest
            )

    return run
