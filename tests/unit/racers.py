"""Contestants for the tests of the benchmarks' machinery; they need the standard library only."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.child import Measured, Turn


def steady(*, name: str, rate: float, log: str) -> Turn:
    """Always as fast, and noted down in a file whenever it is its turn."""

    def turn() -> Measured:
        with Path(log).open("a") as stream:
            stream.write(name)
        print("peers print all sorts of things")
        return Measured(2.0, 2.0 * rate, {"extra": 7.0})

    return turn


def crashing(*, after: int) -> Turn:
    """Ends its process in a later round."""
    rounds = iter(range(after + 1))

    def turn() -> Measured:
        if next(rounds) == after:
            print("out of luck", flush=True)
            os._exit(3)
        return Measured(1.0, 1.0)

    return turn


def elsewhere() -> Turn:
    """Needs a library that nobody has."""
    import no_such_library  # type: ignore[import-not-found]

    return no_such_library.turn  # type: ignore[no-any-return]
