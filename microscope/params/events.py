"""What a job's child process says while it works: one JSON object per line on its standard output."""

from __future__ import annotations

import enum
from typing import Any, Literal

import msgspec


class ExitCode(enum.IntEnum):
    """Exit status of every ``microscope`` command."""

    OK = 0
    CRASHED = 1  # an unforeseen exception; a defect
    USAGE = 2  # wrong options
    REFUSED = 3  # a MicroscopeError: the message says what to change
    CANCELLED = 4


class JobEvent(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of a job's event stream.

    ``progress`` repeats the running phase with ``done`` of ``total`` ``unit``s at ``rate`` units per
    second, plus live ``metrics``; ``checkpoint`` says work up to ``done`` survives a kill; ``result``
    carries what the job produced; ``error`` ends a job that was refused or crashed.
    """

    type: Literal["progress", "log", "checkpoint", "result", "error"]
    phase: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    metrics: dict[str, float] = {}
    level: Literal["info", "warning", "error"] = "info"
    message: str = ""
    code: str = ""
    hint: str = ""
    result: dict[str, Any] = {}
