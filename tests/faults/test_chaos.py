"""A few random deaths; ``python -m tests.chaos --kills 100`` is the long run."""

from __future__ import annotations

import pytest

from tests.chaos.run import under_fire
from tests.running import Lab

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers"), pytest.mark.timeout(900)]


def test_nothing_is_lost_when_anything_dies(lab: Lab) -> None:
    report = under_fire(lab, kills=5, seed=1, longest_pause=3.0)
    # How soon a session is back says something about the machine, too: that is for the long run.
    complaints = [text for text in report.complaints if "after its processes" not in text]
    assert complaints == [], report.text()
    assert sum(report.jobs.values()) >= 3
    lab.mend()
