"""Which features fire together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.codes import Firings
from microscope.features.statistics import GroupedCounts
from microscope.params.features import Partner

# Firings looked at per feature, so that rare features are known as well as common ones at a bounded cost.
_PAIRS, _FEWEST, _MOST = 32_000_000, 16, 256


class Coactivation:
    """For every feature, how often the others fire on the same token.

    Each feature's first firings are looked at, up to a number that keeps the pairs of all features
    together bounded. Documents come in a random order, so these are a fair sample.
    """

    def __init__(self, latents: int, active: int, *, memory_bytes: int) -> None:
        quota = _PAIRS // max(1, latents * active)
        self._quota = min(_MOST, max(_FEWEST, quota))
        self.sampled = np.zeros(latents, np.int64)
        self._counts = GroupedCounts(latents, memory_bytes=memory_bytes)

    def add(self, firings: Firings) -> None:
        feature, row = firings.feature, firings.row
        if not len(feature):
            return
        chosen = self._within_quota(feature)
        by_row = np.argsort(row, kind="stable")
        per_row = np.bincount(row, minlength=int(row.max()) + 1)
        start = np.cumsum(per_row) - per_row
        length = per_row[row[chosen]]
        # all features of each chosen firing's row, one after another
        offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        partner = feature[by_row[np.repeat(start[row[chosen]], length) + offset]]
        own = np.repeat(feature[chosen], length)
        other = partner != own
        self._counts.add(own[other], partner[other], np.ones(int(other.sum())))

    def _within_quota(self, feature: np.ndarray) -> np.ndarray:
        """Firings (by index, sorted by feature) that still count for their feature."""
        first = np.flatnonzero(np.concatenate(([True], feature[1:] != feature[:-1])))
        sizes = np.diff(np.append(first, len(feature)))
        rank = np.arange(len(feature)) - np.repeat(first, sizes)
        chosen = np.flatnonzero(self.sampled[feature] + rank < self._quota)
        self.sampled += np.bincount(feature[chosen], minlength=len(self.sampled))
        return chosen

    def partners(self, density: np.ndarray, count: int) -> dict[int, list[tuple[int, float, float]]]:
        """Feature → up to ``count`` others as (index, share of its firings they join, lift over chance).

        Ordered by share × log(lift): often together, and more often than their density explains.
        """
        found: dict[int, list[tuple[int, float, float]]] = {}
        for feature, entries in self._counts.top(4 * count).items():
            rows = []
            for other, _, times in entries:
                share = times / self.sampled[feature]
                lift = share / density[other]
                if lift > 1:
                    rows.append((other, float(share), float(lift)))
            rows.sort(key=lambda row: -row[1] * np.log(row[2]))
            found[feature] = rows[:count]
        return found


class Partners(Accumulator):
    def __init__(self, context: AnalysisContext) -> None:
        super().__init__(context)
        config = context.sae.config
        self._together = Coactivation(config.n_latents, config.k, memory_bytes=context.memory_bytes)

    def first_pass(self, firings: Firings) -> None:
        self._together.add(firings)

    def results(self) -> Iterator[dict[str, Any]]:
        found = self._together.partners(self.context.density, self.context.params.neighbours)
        for i in self.context.features.tolist():
            yield {
                "partners": [
                    Partner(index=j, share=round(share, 4), lift=round(lift, 2))
                    for j, share, lift in found.get(i, [])
                ]
            }
