"""How a loaded model is run, and where it can be read."""

from __future__ import annotations

import msgspec


class SiteReach(msgspec.Struct, kw_only=True, frozen=True):
    """The blocks of a model that have a kind of site, and why the others do not; empty when all have it."""

    kind: str
    blocks: tuple[int, ...]
    reason: str = ""


class Running(msgspec.Struct, kw_only=True, frozen=True):
    """How a loaded model is run, and where it can be read.

    ``path`` is ``"fast"`` (its weights, composed anew) or ``"general"`` (its own blocks, called one by one);
    ``reason`` says why it is no faster one. ``from_start`` models keep a recurrent state, so every answer is
    computed from the first position on.
    """

    path: str
    reason: str = ""
    from_start: bool = False
    sites: list[SiteReach] = []
