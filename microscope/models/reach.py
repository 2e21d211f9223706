"""Which sites a model has, block by block."""

from __future__ import annotations

from microscope.models.families import Family
from microscope.params import SITE_KINDS, SiteReach


def site_reach(family: Family, n_layers: int) -> list[SiteReach]:
    """The blocks that have each kind of site, and the reason of the first one that has not."""
    found = []
    for kind in SITE_KINDS:
        parts = [family.parts_of(layer) for layer in range(n_layers)]
        without = [part for part in parts if part.tap(kind) is None]
        reason = without[0].missing.get(kind, "its blocks have no such activation") if without else ""
        blocks = tuple(layer for layer, part in enumerate(parts) if part.tap(kind) is not None)
        found.append(SiteReach(kind=kind, blocks=blocks, reason=reason))
    return found
