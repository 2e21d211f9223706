"""The contestant's side: a process that measures one round whenever it is asked.

``python -m benchmarks.child FD ENTRY OPTIONS`` builds ``ENTRY`` (``module:function``; a module without a
package is one of ``benchmarks.contestants``) and then answers every request on the socket ``FD`` with the seconds and the
amount of work of one round. It runs in the contestant's own environment, so it imports nothing but the
standard library before the contestant itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import MappingProxyType
from typing import Any, NamedTuple


class Measured(NamedTuple):
    """One round: how long it took, how much was done, and what else is to be reported."""

    seconds: float
    amount: float
    extra: Mapping[str, float] = MappingProxyType({})


Turn = Callable[[], Measured]


def repeated(work: Callable[[], object], times: int, amount: float, *, loop: bool = False) -> Turn:
    """Rounds that do the same work several times; ``amount`` is what one of them gets done.

    Work that in use is one turn of a ``loop`` is done once more in front: after the others' rounds caches
    hold nothing of it.
    """

    def turn() -> Measured:
        if loop:
            work()
        started = time.perf_counter()
        for _ in range(times):
            work()
        return Measured(time.perf_counter() - started, amount * times)

    return turn


def _versions(packages: list[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _build(entry: str, options: dict[str, Any]) -> Turn:
    module, function = entry.split(":")
    if "." not in module:
        module = f"benchmarks.contestants.{module}"
    build: Callable[..., Turn] = getattr(importlib.import_module(module), function)
    return build(**options)


def main() -> None:
    """Build the contestant, then answer rounds until the other side hangs up."""
    connection = Connection(int(sys.argv[1]))

    def say(message: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(message).encode())

    request = json.loads(sys.argv[3])
    try:
        turn = _build(sys.argv[2], request["options"])
    except ImportError as error:
        traceback.print_exc()
        say({"absent": error.name or str(error)})
        return
    say({"ready": True, "versions": _versions(request["packages"])})
    while True:
        try:
            connection.recv_bytes()
        except EOFError:
            return
        done = turn()
        say({"seconds": done.seconds, "amount": done.amount, "extra": dict(done.extra)})


if __name__ == "__main__":
    main()
