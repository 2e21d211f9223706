"""Manners of processes: a job yields to people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.skips import only_with_autogroups

AUTOGROUP = Path("/proc/self/autogroup")
TELL = (
    "import os; from microscope.processes import yield_to_people; yield_to_people(); "
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
