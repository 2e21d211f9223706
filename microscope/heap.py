"""Memory that was freed but is still held by the C library."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def trim_heap() -> None:
    """Give freed memory back to the system.

    glibc takes large arrays from its heap once it has seen a few of them come and go, and small ones
    that live longer keep the holes between them from going back: the heap then grows with the number
    of arrays made, not with what is in use. Does nothing where there is another C library.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
