"""How loops are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit

# Sums may be taken in any order, as BLAS takes them; infinities and NaN keep their meaning.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    "error_model": "numpy",  # a check of every divisor would keep loops from being vectorised
}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on its first call; keep the result on disk where a folder can be written.

    It may only call compiled functions of its own module: the kept result is renewed when that changes.
    """
    try:
        made: Callable[..., Any] = njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:  # neither beside the source nor in the user's cache
        made = njit(**_OPTIONS)(function)
    return made
