"""UUIDv7: unique ids that sort by creation time."""

from __future__ import annotations

import os
import threading
import time
import uuid

_lock = threading.Lock()
_last = 0


def uuid7() -> uuid.UUID:
    """A new id, larger than every id this process made before.

    Layout of RFC 9562: 48 bits of milliseconds, then 12 bits that count within the millisecond, then
    62 random bits.
    """
    global _last
    with _lock:
        # Milliseconds and counter as one number: it only ever grows, even when the clock steps back.
        moment = max(time.time_ns() // 1_000_000 << 12, _last + 1)
        _last = moment
    random = int.from_bytes(os.urandom(8), "big") & (1 << 62) - 1
    value = (moment >> 12) << 80 | 0x7 << 76 | (moment & 0xFFF) << 64 | 0b10 << 62 | random
    return uuid.UUID(int=value)
