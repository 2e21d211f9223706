"""How a loaded model is run, and which sites it has, block by block."""

from __future__ import annotations

from microscope.models.families import Family
from microscope.models.load import LoadedModel
from microscope.models.runner import BlockRunner
from microscope.params import SITE_KINDS, Running, SiteReach


def running_of(loaded: LoadedModel, runner: BlockRunner) -> Running:
    """What people are told of a model and the runner that serves it."""
    return Running(
        path=runner.path,
        reason=runner.why,
        from_start=not runner.cuttable,
        sites=site_reach(loaded.family, loaded.n_layers),
    )


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
