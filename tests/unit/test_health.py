"""Heartbeats, and what is said when there are none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import pytest

from apps.core import heartbeat
from worker import health


def test_a_heartbeat_is_fresh_then_stale(tmp_path, capsys) -> None:
    def look(role: str) -> tuple[int, str]:
        status = health.main([role, "--data-dir", str(tmp_path)])
        return status, capsys.readouterr().out

    assert look("compute") == (1, f"compute has sent no heartbeat yet in {tmp_path}.\n")
    heartbeat.beat(tmp_path / "run", "compute")
    assert look("compute") == (0, "compute works.\n")
    assert look("beat")[0] == 1, "every role has its own"
    long_ago = time.time() - heartbeat.MAX_AGE_SECONDS - 100
    os.utime(heartbeat.file_of(tmp_path / "run", "compute"), (long_ago, long_ago))
    status, text = look("compute")
    assert (status, text.startswith("compute sent its last heartbeat 16")) == (1, True)
    heartbeat.beat(tmp_path / "run", "compute")
    assert look("compute")[0] == 0


def test_a_process_that_an_earlier_version_started_is_still_heard(tmp_path) -> None:
    """It goes on while the new version is installed, and must not be taken for dead."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / f"pulse-agent-{socket.gethostname()}").touch()
    assert health.main(["agent", "--data-dir", str(tmp_path)]) == 0


def test_looking_needs_neither_django_nor_the_engine(tmp_path) -> None:
    program = (
        "import sys, worker.health as h; h.main(['beat', '--data-dir', sys.argv[1]]); "
        "print({'django', 'celery', 'torch'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "set()"


def test_unknown_roles_are_refused(tmp_path) -> None:
    with pytest.raises(SystemExit):
        health.main(["web", "--data-dir", str(tmp_path)])
