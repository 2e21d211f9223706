"""What the portal answers, as far as the client looks at it; other fields are left alone."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

FINAL = frozenset({"succeeded", "failed", "cancelled"})


class JobError(Struct, frozen=True):
    """Why a job failed, and what to do about it."""

    code: str
    message: str
    hint: str = ""


class Job(Struct, frozen=True):
    """A job; ``done`` and ``total`` are in ``unit``, ``rate`` in units per second.

    ``queue_position`` counts from 1 while the job is queued and is 0 otherwise.
    """

    id: str
    project: str
    kind: str
    title: str
    state: str
    subject_type: str = ""
    subject_id: str = ""
    phase: str = ""
    done: float = 0.0
    total: float | None = None
    unit: str = ""
    rate: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, float | None] = {}
    error: JobError | None = None
    artifact: str | None = None
    queue_position: int = 0
    created_at: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in FINAL


class Item(Struct, frozen=True):
    """A model, corpus, recording, SAE, patch, adapter or project by its name."""

    id: str
    name: str = ""
    state: str = ""
    project: str = ""
    created_at: str = ""


class File(Struct, frozen=True):
    """One file of an artifact."""

    path: str
    bytes: int
    sha256: str


class Artifact(Struct, frozen=True):
    """A folder of files."""

    id: str
    kind: str
    bytes: int
    files: list[File]


class Upload(Struct, frozen=True):
    """A file on its way in; ``offset`` bytes have arrived. One ``in_use`` belongs to a job."""

    id: str
    path: str
    bytes: int
    offset: int
    complete: bool
    in_use: bool = False
    sha256: str = ""


class Event(Struct, frozen=True):
    """One line of a job's history."""

    seq: int
    kind: str
    level: str
    message: str
    data: dict[str, Any] = {}
