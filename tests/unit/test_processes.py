"""Real processes: they yield to people, are stopped with all they started, and are held to their limits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from microscope.processes.group import Backoff, ProcessGroup
from microscope.processes.limits import BY_SIGNAL, Limits
from microscope.processes.sockets import short_path
from tests.skips import only_on_linux, only_with_autogroups

AUTOGROUP = Path("/proc/self/autogroup")
TELL = (
    "import os; from microscope.processes.child import lower_priority; lower_priority(); "
    "print(os.nice(0)); print(open('/proc/self/autogroup').read())"
)


def told(*, own_session: bool) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", TELL],
        start_new_session=own_session,
        capture_output=True,
        text=True,
        check=True,
    )
    niceness, group, *_ = done.stdout.splitlines()
    return int(niceness), group.rpartition(" ")[2]


@only_with_autogroups
def test_a_job_yields_with_its_session_and_never_with_somebody_elses() -> None:
    before = AUTOGROUP.read_text().strip().rpartition(" ")[2]
    niceness = min(19, os.nice(0) + 10)
    assert told(own_session=True) == (niceness, "10")
    assert told(own_session=False) == (niceness, before)
    assert AUTOGROUP.read_text().strip().rpartition(" ")[2] == before


# Starts a second process in its group, prints both ids, and then does what it is told.
PAIR = (
    "import os, signal, subprocess, sys, time\n"
    "second = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "{manner}\n"
    "print(os.getpid(), second.pid, flush=True)\n"
    "time.sleep(600)\n"
)
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
STARTED: list[ProcessGroup] = []


def start(program: str, **options) -> ProcessGroup:
    options = {"environment": os.environ, "stderr": None, **options}
    process = ProcessGroup([sys.executable, "-c", program], **options)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    while STARTED:
        STARTED.pop().reap()


def pair(manner: str = "pass", **options) -> tuple[ProcessGroup, psutil.Process]:
    """A group of two, and the second of them."""
    process = start(PAIR.format(manner=manner), **options)
    first, second = map(int, process.stdout.readline().split())
    assert first == process.pid == os.getpgid(second)
    return process, psutil.Process(second)


def gone(process: psutil.Process, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_group_is_asked_to_end_and_all_of_it_does() -> None:
    process, second = pair()
    assert process.running
    assert os.getsid(process.pid) == process.pid, "a terminal's signals do not reach it"
    assert process.stop(30) == -signal.SIGTERM
    assert not process.running
    assert gone(second)
    assert process.reap() == -signal.SIGTERM, "as often as one likes"


def test_a_process_that_does_not_listen_is_killed_with_what_it_started() -> None:
    process, second = pair(STUBBORN)
    began = time.monotonic()
    assert process.stop(0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - began < 10
    assert gone(second)


async def test_an_event_loop_stops_groups_as_well() -> None:
    (gentle, one), (stubborn, two) = pair(), pair(STUBBORN)
    assert not await gentle.ended(0.05)
    assert await gentle.stopped(30) == -signal.SIGTERM
    assert await stubborn.stopped(0.1) == -signal.SIGKILL
    assert await stubborn.ended(0)
    assert gone(one)
    assert gone(two)


async def test_an_event_loop_that_waits_for_long_looks_rarely() -> None:
    class Counted(ProcessGroup):
        looks = 0

        @property
        def running(self) -> bool:
            self.looks += 1
            return super().running

    process = Counted([sys.executable, "-c", "import time; time.sleep(600)"], environment=os.environ)
    STARTED.append(process)
    began = time.monotonic()
    assert not await process.ended(2)
    assert time.monotonic() - began >= 2
    assert process.looks < 30
    process.signal(signal.SIGKILL)
    assert await process.ended(30)


def test_after_kill_9_its_id_stays_its_own_until_it_is_reaped() -> None:
    """So a signal to the group can reach nobody else, and what it had started is still found by it."""
    process, second = pair()
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(10)
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
    assert second.is_running()
    assert process.reap() == -signal.SIGKILL
    assert gone(second)
    assert not psutil.pid_exists(process.pid)
    process.signal(signal.SIGKILL)  # to nobody


def test_a_tied_process_dies_with_the_one_that_started_it() -> None:
    program = (
        "import os, sys, time\n"
        "from microscope.processes.group import ProcessGroup\n"
        "child = ProcessGroup([sys.executable, '-c', 'import time; time.sleep(600)'],\n"
        "    environment=os.environ, stdout=None, stderr=None, tied=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = start(program)
    child = psutil.Process(int(parent.stdout.readline()))
    assert child.is_running()
    os.kill(parent.pid, signal.SIGKILL)
    assert gone(child)


def test_a_process_has_the_environment_and_the_descriptors_it_is_given_and_no_more(tmp_path) -> None:
    file = (tmp_path / "lock").open("w")
    other = (tmp_path / "other").open("w")
    os.set_inheritable(other.fileno(), True)
    program = (
        "import os; print(sorted(set(os.environ) - {'LC_CTYPE'})); print(os.getcwd()); "
        f"print([os.path.exists(f'/proc/self/fd/{{n}}') for n in ({file.fileno()}, {other.fileno()})])"
    )
    environment = {"ONLY": "this", "PATH": os.environ["PATH"]}
    process = start(program, environment=environment, folder=tmp_path, keep_open=[file.fileno()])
    assert process.stdout.read().decode().splitlines() == ["['ONLY', 'PATH']", str(tmp_path), "[True, False]"]
    assert process.wait(10)
    assert process.reap() == 0


@only_on_linux
def test_a_process_is_held_to_its_limits(tmp_path) -> None:
    limits = Limits(memory=2**31, seconds=60, file=2**20, confined=True)
    writes = (
        f"import signal, time; time.sleep(0.3); open({str(tmp_path / 'big')!r}, 'wb').write(bytes(2**21))"
    )
    # the interpreter ignores this signal and would make an exception of it; a compiled program does not
    process = start("import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL); " + writes, limits=limits)
    assert process.wait(30)
    assert BY_SIGNAL[process.reap()] == "file"
    greedy = "import time; time.sleep(0.3); b = bytearray(2**32)"
    process = start(greedy, limits=limits, stderr=subprocess.PIPE)
    assert b"MemoryError" in process.stderr.read()
    assert process.reap() == 1


def test_restarts_back_off_until_a_process_was_stable() -> None:
    backoff = Backoff((0.5, 1.0, 5.0), stable=30.0)
    assert [backoff.after(1.0) for _ in range(5)] == [0.5, 1.0, 5.0, 5.0, 5.0]
    assert [backoff.after(31.0), backoff.after(1.0), backoff.after(31.0)] == [0.5, 1.0, 0.5]


def test_a_socket_whose_path_would_be_too_long_lies_in_a_private_folder(tmp_path) -> None:
    assert short_path(Path("/run/portal"), "m.sock") == Path("/run/portal/m.sock")
    long = tmp_path / ("x" * 120)
    path = short_path(long, "m.sock")
    assert len(str(path)) < 100
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert (
        short_path(long, "n.sock").parent
        == path.parent
        != short_path(tmp_path / ("y" * 120), "m.sock").parent
    )
