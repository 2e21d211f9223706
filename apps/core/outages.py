"""Failures of the machine that pass: a full disk, a database that is locked or away. They are answered 503, in words."""

from __future__ import annotations

import errno

from django.db import InterfaceError, OperationalError

from apps.core.errors import Refused

RETRY_SECONDS = 10
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What SQLite and PostgreSQL say; Django leaves the kind of the trouble to the text.
_DISK_WORDS = ("disk is full", "no space left", "could not extend file", "quota exceeded")
_LOCK_WORDS = ("is locked", "lock timeout", "deadlock", "could not obtain lock")
# SQLite calls defects by the same name (a missing column, too many variables); these are none.
_SQLITE_AWAY = ("unable to open", "disk i/o", "readonly database")


class Outage(Refused):
    """The server cannot do it now; the same request may succeed in a while."""

    def __init__(self, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint, status=503)
        self.wait = RETRY_SECONDS
        self.headers = {"Retry-After": str(RETRY_SECONDS)}


def outage_of(error: BaseException | None) -> Outage | None:
    """What a failure means for the one who asked, or None when it is a defect.

    Looks at the causes, too: a library may have wrapped what the system said.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found = _one(error)
        if found is not None:
            return found
        error = error.__cause__ or error.__context__
    return None


def _one(error: BaseException) -> Outage | None:
    text = str(error).lower()
    database = isinstance(error, OperationalError | InterfaceError)
    if (isinstance(error, OSError) and error.errno in _FULL) or (
        database and any(words in text for words in _DISK_WORDS)
    ):
        return Outage(
            "disk_full",
            "The server's disk is full: nothing was changed.",
            "Delete what is no longer needed, or ask an administrator for space, and try again.",
        )
    if not database:
        return None
    if any(words in text for words in _LOCK_WORDS):
        return Outage(
            "database_busy",
            "The database was busy with something else for too long: nothing was changed.",
            "Try again in a moment.",
        )
    sqlite = type(error.__cause__).__module__.startswith("sqlite3")
    if sqlite and not any(words in text for words in _SQLITE_AWAY):
        return None
    return Outage(
        "database_unavailable",
        "The database does not answer.",
        "Try again in a moment; if it lasts, an administrator must look at the database and its disk.",
    )
