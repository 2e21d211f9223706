"""The probe as a job kind."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from apps.core.errors import Refused
from apps.jobs.kinds import OUT, JobKind
from microscope.params import JobParams

CHILD = Path(__file__).with_name("child.py")


class ProbeParams(JobParams, frozen=True):
    """Count to a number."""

    out: Annotated[str, Meta(extra_json_schema={"x-place": True})]
    count: int = 10
    delay: float = 0.02
    pause_at: int = -1  # the first start counts that far and then waits to be ended
    stubborn: bool = False  # ignores the cancel file and SIGTERM
    light: bool = False  # reads files only, as far as its limits go
    model: str | None = None  # the Hub's token is told where this is no file
    behaviour: str = (
        ""  # "refuse", "crash", "silent", "chatty", "nan", "full", "overfull", "greedy", "busy", "long"
    )


def _prepare(job, workdir):
    return {**job.params, "out": str(workdir / OUT)}


PROBE = JobKind(
    name="probe",
    title="Count",
    params_type=ProbeParams,
    command=lambda: (sys.executable, str(CHILD)),
    prepare=_prepare,
    artifact="other",
    computes=lambda config: not config["light"],
    hub=True,
)


def _refuse(job, result, digest):
    raise Refused("bad_result", "No.")


KINDS = (
    PROBE,
    replace(PROBE, name="probe_refused", on_success=_refuse),
    replace(PROBE, name="probe_bare", artifact=None),
)
