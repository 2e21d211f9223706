"""Real processes: an embedded Valkey, real compute workers, and leases short enough to watch."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
from celery import Celery
from django.conf import settings as django_settings
from django.db import connection

from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import FINAL, State
from tests.conftest import place_files
from tests.factories import JobFactory
from tests.running import wait_for
from workbench.supervisor import broker_command

ROOT = Path(__file__).parents[2]
LEASE = 30.0  # no stall of a busy machine costs a worker its job
SHORT_LEASE = {"WORKBENCH_LEASE_SECONDS": "4"}  # for tests in which a lease has to end


def database_url() -> str:
    """Of the test's own database, for other processes."""
    known = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{known['NAME']}"
    return f"postgresql://{known['USER']}@/{known['NAME']}?{urlencode(known['OPTIONS'])}"


@contextlib.contextmanager
def locked_database() -> Iterator[None]:
    """Nobody else can write to the table of jobs, or to anything where the whole file is locked."""
    if connection.vendor == "sqlite":
        with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=30)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.rollback()
        return
    import psycopg

    with psycopg.connect(database_url()) as other:
        other.execute("LOCK TABLE jobs_job IN EXCLUSIVE MODE")
        yield
        other.rollback()


def database_is_free() -> bool:
    """Whether nobody is in the middle of writing."""
    try:
        if connection.vendor == "sqlite":
            with contextlib.closing(sqlite3.connect(connection.settings_dict["NAME"], timeout=0.2)) as other:
                other.execute("BEGIN IMMEDIATE")
                other.rollback()
            return True
        import psycopg

        with psycopg.connect(database_url()) as other:
            other.execute("LOCK TABLE jobs_job, jobs_workernode IN EXCLUSIVE MODE NOWAIT")
            other.rollback()
        return True
    except Exception as error:
        if type(error).__name__ not in ("OperationalError", "LockNotAvailable"):
            raise
        return False


class Valkey:
    """An embedded server on a Unix socket that can be killed and started empty."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "v.sock"
        self.url = f"unix://{self.path}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(broker_command(self.path), stdout=subprocess.DEVNULL)
        wait_for(self._answers, what="for valkey")

    def _answers(self) -> bool:
        import redis

        with contextlib.suppress(redis.RedisError):
            return bool(redis.Redis(unix_socket_path=str(self.path)).ping())
        return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Worker:
    """A compute worker: the whole Celery process, as the supervisor starts it."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        known = set(WorkerNode.objects.values_list("pk", flat=True))
        command = [sys.executable, "-m", "celery", "-A", "workbench", "worker", "--loglevel", "info"]
        command += ["--without-mingle", "--without-gossip", "--without-heartbeat"]
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        wait_for(lambda: self._registered(known, log), 120, f"for the worker, see {log}")

    def _registered(self, known: set[object], log: Path) -> bool:
        assert self._process.poll() is None, log.read_text()[-3000:]
        return WorkerNode.objects.filter(pid=self.pid).exclude(pk__in=known).exists()

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def freeze(self) -> None:
        """SIGSTOP, but not while it holds a lock of the database: that would stop everybody else, too."""

        def frozen() -> bool:
            self.signal(signal.SIGSTOP)
            if database_is_free():
                return True
            self.signal(signal.SIGCONT)
            return False

        wait_for(frozen, 30, "for a moment between two transactions")

    def kill(self) -> None:
        """SIGKILL to every process of it."""
        self.signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()


class Stack:
    """Everything a fault test starts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.valkey = Valkey(folder)
        self.workers: list[Worker] = []
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("WORKBENCH_")},
            "DJANGO_SETTINGS_MODULE": "workbench.settings.test",
            "WORKBENCH_TEST_SERVERS": "1",
            "WORKBENCH_DATA_DIR": str(folder),
            "DATABASE_URL": database_url(),
            "REDIS_URL": self.valkey.url,
            "WORKBENCH_LEASE_SECONDS": str(LEASE),
            "WORKBENCH_HEARTBEAT_SECONDS": "0.3",
            "WORKBENCH_REAP_SECONDS": "0.5",
            "WORKBENCH_WAKEUP_SECONDS": "1",
            "WORKBENCH_CANCEL_GRACE_SECONDS": "0.5",
        }

    def worker(self, **environment: str) -> Worker:
        """Start one more compute worker."""
        worker = Worker({**self.environment, **environment}, self.folder / "worker.log")
        self.workers.append(worker)
        return worker

    def broker(self) -> Celery:
        """A sender of wake-ups to this stack's broker."""
        app = Celery("sender")
        url = f"redis+socket://{self.valkey.path}?virtual_host=0"
        app.conf.update({**django_settings.CELERY, "broker_url": url, "imports": []})
        return app

    def stop(self) -> None:
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
            worker.kill()
        self.valkey.kill()


@pytest.fixture
def stack(transactional_db, tmp_path_factory, settings, monkeypatch) -> Iterator[Stack]:
    """A broker, and this process sending its wake-ups there."""
    from apps.jobs import announce

    folder = tmp_path_factory.mktemp("s")  # short: socket paths are limited
    place_files(folder, settings)
    made = Stack(folder)
    sender = made.broker()
    monkeypatch.setattr(announce, "app", sender)
    try:
        made.valkey.start()
        yield made
    finally:
        made.stop()
        sender.close()


def submit(**params) -> Job:
    """A queued probe, announced."""
    from apps.jobs.announce import wake_workers

    whole = {
        "count": 10,
        "delay": 0.02,
        "pause_at": -1,
        "stubborn": False,
        "behaviour": "",
        "light": False,
        **params,
    }
    job = JobFactory(params=whole)
    wake_workers(job.pk)
    return job


def state(job: Job) -> str:
    return Job.objects.values_list("state", flat=True).get(pk=job.pk)


def wait_running(job: Job, done: int = 1, seconds: float = 60.0) -> Job:
    """Until the child has counted that far."""
    rows = Job.objects.filter(pk=job.pk, state=State.RUNNING, done__gte=done)
    wait_for(rows.exists, seconds, f"for {job.pk} to run; it is {state(job)}")
    return Job.objects.get(pk=job.pk)


def wait_final(job: Job, seconds: float = 120.0) -> Job:
    """Until it is over."""
    wait_for(lambda: state(job) in FINAL, seconds, f"for {job.pk} to end")
    return Job.objects.select_related("artifact").get(pk=job.pk)


def starts(job: Job) -> list[int]:
    """Process ids of every child the finished job had."""
    return [int(pid) for pid in (job.artifact.checkout() / "starts.txt").read_text().split()]


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
