"""Which of several machines this is, and what to say when a file lies on another of them."""

from __future__ import annotations

import socket

from apps.core.errors import Refused


def this_host() -> str:
    """The name of this machine, as its workers announce themselves."""
    return socket.gethostname()[:120]


def file_elsewhere(what: str, host: str, remedy: str) -> Refused:
    """The refusal of work that needs a file which only another machine has.

    Args:
        what: the file, in words a sentence can begin with.
        host: the machine that has it.
        remedy: how the file gets here.
    """
    return Refused(
        "file_elsewhere", f"{what} is not on this host ({this_host()}); it is on {host}.", remedy, status=409
    )
