"""Doing one job: its folder, its child, its lease, and what becomes of it in the end."""

from __future__ import annotations

import contextlib
import errno
import queue
import shutil
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from django.conf import settings
from django.db import OperationalError, connection

from apps.artifacts import services as artifacts
from apps.core.errors import MicroscopeError
from apps.jobs import leases
from apps.jobs.kinds import OUT, get_kind
from apps.jobs.leases import LeaseLost
from apps.jobs.models import Job
from apps.jobs.states import State
from microscope.params import ExitCode
from microscope.processes.limits import BY_SIGNAL, Usage
from worker.environment import child_environment, names_the_hub
from worker.job_process import JobProcess
from worker.limits import JobLimits, limits_of
from worker.reporting import Reporter
from worker.workdirs import WorkdirBusy, locked

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.1
_STATE_SECONDS = 0.5
_COMMIT_SECONDS = 60.0

KILLED = (
    "killed",
    "The process doing the work was killed.",
    "The machine may have run out of memory: try a smaller batch, buffer or model.",
)


DISK_FULL = (
    "disk_full",
    "The disk of the job folders is full.",
    "Free some space, for example with `manage.py collect_garbage`, and try again.",
)


class Supervision:
    """Runs one claimed job to its end. Call :meth:`run` from a thread that outlives the child.

    Args:
        job: as returned by ``claim``.
        draining: set when the worker is told to shut down; the job is then given back.
    """

    def __init__(self, job: Job, draining: threading.Event) -> None:
        if job.lease_token is None:
            raise ValueError("the job is not claimed")
        self._job, self._token, self._draining = job, job.lease_token, draining
        self._kind = get_kind(job.kind)
        self._workdir = leases.workdir(job.pk)
        self._cancel_file = self._workdir / "cancel"
        self._child: JobProcess | None = None
        self._limits: JobLimits | None = None
        self._usage: Usage | None = None
        self._lost = threading.Event()
        self._done = threading.Event()
        self._log = log.bind(job=str(job.pk), kind=job.kind, attempt=job.attempt)

    def run(self) -> None:
        """Do the job. Whatever happens ends in a state of the job, never in an exception."""
        heartbeat = threading.Thread(target=self._keep_lease, name="heartbeat", daemon=True)
        heartbeat.start()
        try:
            self._prepare_and_work()
        except LeaseLost:
            self._log.warning("lease_lost")
        except WorkdirBusy:
            self._settle(lambda: leases.lose(job=self._job, token=self._token))
        except MicroscopeError as error:
            self._fail(error.code, error.message, error.hint)
        except Exception as error:
            self._log.exception("supervision_failed")
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                self._fail(*DISK_FULL)
                return
            self._fail(
                "supervision_failed",
                f"The worker could not run this job: {type(error).__name__}: {error}.",
                "The worker's log has the details.",
            )
        finally:
            self._done.set()
            if self._child is not None:
                self._child.reap()
            heartbeat.join(timeout=10)

    # --- start ----------------------------------------------------------------------------------------

    def _prepare_and_work(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        child, reporter = self._start_child()
        if child is None:
            self._settle(lambda: leases.confirm_cancel(job=self._job, token=self._token))
            return
        self._log.info("job_started", pid=child.pid)
        reason = self._follow(child, reporter)
        status = child.reap()
        self._drain_events(child, reporter)
        self._conclude(status, reason, reporter)

    def _start_child(self) -> tuple[JobProcess | None, Reporter]:
        """Start the child in the folder; None when the job was cancelled before.

        The child inherits the lock of the folder and is then its only holder: two children never work
        there at once, and a supervisor that hangs does not keep the next attempt out.
        """
        with locked(self._workdir, give_up=self._lost.is_set) as lock:
            leases.recover_output(self._job)
            self._cancel_file.unlink(missing_ok=True)
            config = self._kind.prepare(self._job, self._workdir)
            path = self._workdir / "config.json"
            path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=1))
            command = [*self._kind.command(), "--config", str(path), "--events", "-"]
            command += ["--cancel-file", str(self._cancel_file)]
            if self._state() == State.CANCELLING:
                return None, Reporter(self._job, self._token)
            try:
                limits = limits_of(self._kind, config)
                environment = child_environment(
                    hub=self._kind.hub and names_the_hub(config),
                    hub_token=settings.HF_TOKEN,
                    more=settings.WORKBENCH_CHILD_ENVIRONMENT,
                    confined=limits.confined,
                )
                self._child = JobProcess(
                    command,
                    self._workdir,
                    environment=environment,
                    limits=limits,
                    keep_open=[lock],
                )
                self._limits, self._usage = limits, Usage(self._child.pid, limits)
            except (FileNotFoundError, PermissionError) as error:
                raise MicroscopeError(
                    "engine_missing",
                    f"{command[0]} cannot be started: {error.strerror}.",
                    "Set WORKBENCH_ENGINE_PYTHON to a Python that has the engine installed.",
                ) from error
        self._job = self._started()
        return self._child, Reporter(self._job, self._token)

    def _started(self) -> Job:
        try:
            return leases.start(job_id=self._job.pk, token=self._token)
        except LeaseLost:
            if self._state() == State.CANCELLING:
                # The loop will see it and stop the child.
                return Job.objects.for_display().get(pk=self._job.pk)
            raise

    # --- while it runs --------------------------------------------------------------------------------

    def _follow(self, child: JobProcess, reporter: Reporter) -> str:
        """Read events until the child ends; returns why it was told to stop, if it was."""
        reason, asked_at, sent, looked = "", 0.0, 0, 0.0
        grace = settings.WORKBENCH_CANCEL_GRACE_SECONDS
        usage = self._usage
        assert usage is not None
        while child.running:
            if self._lost.is_set():
                raise LeaseLost
            with contextlib.suppress(queue.Empty):
                reporter.take(child.events.get(timeout=_POLL_SECONDS))
                while True:
                    reporter.take(child.events.get_nowait())
            reporter.tick()
            now = time.monotonic()
            if not reason:
                if self._draining.is_set():
                    reason = "drain"
                elif now - looked >= _STATE_SECONDS:
                    looked = now
                    if self._state() == State.CANCELLING:
                        reason = "cancel"
                    else:
                        reason = usage.exceeded()
                if reason == "memory":
                    child.signal(signal.SIGKILL)  # it would take more while it was asked
                if reason:
                    asked_at = now
                    with contextlib.suppress(OSError):  # on a full disk the signals below do it
                        self._cancel_file.touch()
            elif sent < 2 and now - asked_at > grace * (sent + 1):
                number = (signal.SIGTERM, signal.SIGKILL)[sent]
                reporter.note(
                    f"The job did not stop within {grace * (sent + 1):g} s: {number.name}.", "warning"
                )
                child.signal(number)
                sent += 1
        return reason

    def _drain_events(self, child: JobProcess, reporter: Reporter) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                reporter.take(child.events.get_nowait())

    def _state(self) -> State:
        """The job's state; a database that is busy for a moment changes nothing."""
        try:
            return leases.state_of(job_id=self._job.pk, token=self._token)
        except OperationalError:
            return State.RUNNING

    def _keep_lease(self) -> None:
        """Renew the lease; when that fails for a whole lease, the job may be somebody else's: stop."""
        good = time.monotonic()
        while not self._done.wait(settings.WORKBENCH_HEARTBEAT_SECONDS):
            try:
                held = leases.renew(job_id=self._job.pk, token=self._token)
                good = time.monotonic() if held else good
            except Exception as error:
                self._log.warning("heartbeat_failed", error=str(error))
                held = time.monotonic() - good < settings.WORKBENCH_LEASE_SECONDS
            # While the result is being committed the row is final, and the lease is over as it should be.
            if not held and not self._done.is_set():
                self._lost.set()
                if self._child is not None:
                    self._child.signal(signal.SIGKILL)
                break
        connection.close()

    # --- end ------------------------------------------------------------------------------------------

    def _conclude(self, status: int, reason: str, reporter: Reporter) -> None:
        crashed = status not in (ExitCode.OK, ExitCode.REFUSED, ExitCode.CANCELLED) and not reason
        if crashed:
            for line in self._child.last_errors if self._child is not None else ():
                reporter.note(line, "error")
        reporter.tick(force=True)
        self._log.info("job_ended", status=status, reason=reason)
        job, token = self._job, self._token
        if status == ExitCode.OK and reporter.result is not None:
            self._succeed(reporter.result)
        elif reason == "cancel":
            self._settle(lambda: leases.confirm_cancel(job=job, token=token))
        elif reason == "drain":
            self._settle(lambda: leases.give_back(job=job, token=token))
        elif limit := reason or BY_SIGNAL.get(status):
            assert self._limits is not None
            assert self._usage is not None
            self._fail(*self._limits.refusal(limit, self._usage.memory))
        elif reporter.error is not None and status in (ExitCode.REFUSED, ExitCode.CRASHED):
            error = reporter.error
            self._fail(error.code or "failed", error.message, error.hint)
        elif status in (-signal.SIGKILL, -signal.SIGTERM, ExitCode.CANCELLED):
            # Not by us: the kernel out of memory, an administrator, a machine going down.
            self._settle(lambda: leases.lose(job=job, token=token, error=KILLED))
        else:
            self._fail(*_crash(status))

    def _succeed(self, result: dict[str, Any]) -> None:
        out = self._workdir / OUT
        files = artifacts.list_folder(out) if self._kind.artifact is not None else []
        if self._kind.artifact is not None and not files:
            self._fail("no_output", "The job ended without leaving any file.", "This is a defect.")
            return
        try:
            digest = self._kind.digest(self._job, result, out)
            committed = self._settle(
                lambda: leases.succeed(
                    job=self._job, token=self._token, result=result, files=files, digest=digest
                )
            )
        except (MicroscopeError, LeaseLost):
            raise
        except Exception as error:
            self._log.exception("result_rejected")
            self._fail(
                "result_rejected",
                f"The job's result could not be stored: {type(error).__name__}: {error}.",
                "The worker's log has the details.",
            )
            return
        if committed:
            shutil.rmtree(self._workdir, ignore_errors=True)

    def _fail(self, code: str, message: str, hint: str = "") -> None:
        try:
            self._settle(
                lambda: leases.fail(job=self._job, token=self._token, code=code, message=message, hint=hint)
            )
        except LeaseLost:
            self._log.warning("lease_lost", outcome="failed")

    def _settle(self, write: Callable[[], object]) -> bool:
        """Write the outcome; wait for a busy database, and let a cancellation in between win.

        Returns:
            False when the job was cancelled instead.

        Raises:
            LeaseLost: the job is somebody else's.
        """
        deadline = time.monotonic() + _COMMIT_SECONDS
        as_wished = True
        while True:
            try:
                write()
                return as_wished
            except OperationalError as error:
                if time.monotonic() > deadline:
                    raise
                self._log.warning("outcome_not_stored", error=str(error))
                time.sleep(1)
            except LeaseLost:
                if leases.state_of(job_id=self._job.pk, token=self._token) != State.CANCELLING:
                    raise
                write, as_wished = self._confirm_cancel, False

    def _confirm_cancel(self) -> None:
        leases.confirm_cancel(job=self._job, token=self._token)


def _crash(status: int) -> tuple[str, str, str]:
    if status == ExitCode.OK:
        return "no_result", "The job ended without saying what it produced.", "This is a defect; see its log."
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            return (
                "crashed",
                f"The process doing the work died of {name}.",
                "This is a defect; see the job's log.",
            )
    return (
        "crashed",
        f"The process doing the work ended with status {status}.",
        "See the last lines of its log.",
    )
