"""What an API token may do at most. What its person may do is decided by their roles, as ever."""

from __future__ import annotations

import enum


class Scope(enum.StrEnum):
    """A part of the product a token can be let into. ``read`` is contained in every other one."""

    READ = "read"
    WRITE = "write"
    JOBS = "jobs"
    ARTIFACTS = "artifacts"
    ADMIN = "admin"


MEANING: dict[Scope, str] = {
    Scope.READ: "See what you see.",
    Scope.WRITE: "Add, change and delete models, corpora, labels, patches and results.",
    Scope.JOBS: "Start, cancel and retry jobs, load models, run live sessions.",
    Scope.ARTIFACTS: "Upload and download files.",
    Scope.ADMIN: "Make projects, manage their members; for staff, act as staff.",
}
