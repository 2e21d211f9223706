"""The health checks on real processes: they notice one that hangs, and that it goes on."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.chaos.killing import running
from tests.running import ROOT, Lab, wait_for
from worker.health import ROLES

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(1800)]


def healthy(lab: Lab, role: str, max_age: float) -> bool:
    command = [sys.executable, "-m", "worker.health", role, "--max-age", str(max_age)]
    return (
        subprocess.run(command, cwd=ROOT, env=lab.site.environment, stdout=subprocess.DEVNULL).returncode == 0
    )


def test_a_process_that_hangs_is_noticed(lab: Lab) -> None:
    for role in ROLES:
        wait_for(lambda role=role: healthy(lab, role, 60), 120, f"for {role}")
    [agent] = running(lab.site)["agent"]
    agent.send_signal(signal.SIGSTOP)
    try:
        wait_for(lambda: not healthy(lab, "agent", 8), 60, "for the check to fail")
    finally:
        agent.send_signal(signal.SIGCONT)
    wait_for(lambda: healthy(lab, "agent", 8), 60, "for the check to pass")
