"""Which tests may be left out, and where; whatever else is skipped fails."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

POSTGRESQL = "postgres" in os.environ.get("DATABASE_URL", "")
# Why a test is left out, and whether that is so here.
ALLOWED = {
    "needs PostgreSQL: python -m tests.postgres": not POSTGRESQL,
    "needs SQLite": POSTGRESQL,
    "needs Linux, whose /proc tells what a process was given": sys.platform != "linux",
    "needs Linux with scheduling groups by session": not Path("/proc/self/autogroup").exists(),
    "needs glibc; another C library manages memory in its own way": platform.libc_ver()[0] != "glibc",
}


def _only(*words: str) -> Any:
    [reason] = [reason for reason in ALLOWED if all(word in reason for word in words)]
    return pytest.mark.skipif(ALLOWED[reason], reason=reason)


only_on_postgresql, only_on_sqlite = _only("PostgreSQL"), _only("SQLite")
only_on_linux, only_with_autogroups, only_with_glibc = _only("/proc"), _only("session"), _only("glibc")


def _judge(report: Any) -> None:
    """Turn a skip that is not allowed into a failure."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2].removeprefix("Skipped: ")
    if not ALLOWED.get(reason, False):
        report.outcome = "failed"
        report.longrepr = f"skipped, which tests/skips.py does not allow here: {reason}"


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Any:
    """After everybody else has had their say."""
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report(collector: Any) -> Any:
    """A whole file can be skipped, too."""
    report = yield
    _judge(report)
    return report
