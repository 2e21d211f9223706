"""What each kind of job may take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from django.conf import settings

from apps.jobs.kinds import JobKind
from microscope.processes.limits import Limits, machine_memory

_GIB = 2**30
_SHARE_OF_MACHINE = 0.9  # of what the machine has: the rest is for the portal and the system


@dataclasses.dataclass(frozen=True)
class JobLimits(Limits):
    """Limits of one attempt, and the variables with which an administrator changes them."""

    memory_setting: str = "WORKBENCH_JOB_MEMORY_MB"
    seconds_setting: str = "WORKBENCH_JOB_SECONDS"
    file_setting: str = "WORKBENCH_JOB_FILE_GB"

    def refusal(self, what: str, memory: int) -> tuple[str, str, str]:
        """Code, sentence and remedy for a process that took too much of ``memory``, ``file`` or ``time``.

        Args:
            memory: the bytes it took.
        """
        match what:
            case "memory":
                return (
                    "memory_limit",
                    f"The job took {memory / _GIB:.1f} GiB of memory; {self.memory / _GIB:.1f} are allowed.",
                    "Try a smaller batch, buffer, model or file; an administrator can raise the limit "
                    f"({self.memory_setting}).",
                )
            case "file":
                return (
                    "file_limit",
                    f"The job wrote a file of more than {self.file / _GIB:g} GiB, which is the most it may.",
                    f"Make less of it; an administrator can raise the limit ({self.file_setting}).",
                )
            case _:
                return (
                    "time_limit",
                    f"The job worked for longer than {self.seconds:g} s.",
                    "Make it smaller; training and recording go on from their checkpoint when tried again. "
                    f"An administrator can raise the limit ({self.seconds_setting}).",
                )


def limits_of(kind: JobKind, config: Mapping[str, Any]) -> JobLimits:
    """The limits of a job of that kind with that configuration."""
    computes = kind.computes(config)
    whole = int(machine_memory() * _SHARE_OF_MACHINE)
    memory = (settings.WORKBENCH_JOB_MEMORY_MB if computes else settings.WORKBENCH_IMPORT_MEMORY_MB) * 2**20
    return JobLimits(
        memory=min(memory or whole, whole),
        seconds=settings.WORKBENCH_IMPORT_SECONDS if kind.takes_in else settings.WORKBENCH_JOB_SECONDS,
        file=(settings.WORKBENCH_IMPORT_FILE_GB if kind.takes_in else settings.WORKBENCH_JOB_FILE_GB) * _GIB,
        confined=not computes,
        memory_setting="WORKBENCH_JOB_MEMORY_MB" if computes else "WORKBENCH_IMPORT_MEMORY_MB",
        seconds_setting="WORKBENCH_IMPORT_SECONDS" if kind.takes_in else "WORKBENCH_JOB_SECONDS",
        file_setting="WORKBENCH_IMPORT_FILE_GB" if kind.takes_in else "WORKBENCH_JOB_FILE_GB",
    )
