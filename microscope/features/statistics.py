"""Per-feature statistics of all features in one pass, in memory that does not grow with the text."""

from __future__ import annotations

import numpy as np

from microscope.features.codes import Firings

# Sixteen bins per octave over 2⁻⁸…2⁸: percentiles are exact to about 2 % after interpolation.
_PER_OCTAVE, _LOW, _HIGH = 16, -8, 8
_BINS = (_HIGH - _LOW) * _PER_OCTAVE
# Counts are merged once their memory is full, and pruned to the heaviest per feature.
MOST_PAIRS, _PAIR_BYTES = 4_000_000, 96  # three columns, and copies of them while they are sorted
KEEP_ITEMS = 64
_FEWEST_WAITING, _WINDOW_BYTES = 10_000, 96


class ActivationStatistics:
    """Firings, mean, maximum and percentiles of every feature."""

    def __init__(self, latents: int) -> None:
        self.firings = np.zeros(latents, np.int64)
        self.total = np.zeros(latents)
        self.maximum = np.zeros(latents, np.float32)
        self._histogram = np.zeros(latents * _BINS, np.int32)

    def add(self, firings: Firings) -> None:
        latents = len(self.firings)
        self.firings += np.bincount(firings.feature, minlength=latents)
        self.total += np.bincount(firings.feature, firings.value, minlength=latents)
        first = _run_starts(firings.feature)
        if len(first):
            features = firings.feature[first]
            self.maximum[features] = np.maximum(
                self.maximum[features], np.maximum.reduceat(firings.value, first)
            )
        bin_ = ((np.log2(firings.value) - _LOW) * _PER_OCTAVE).astype(np.int64).clip(0, _BINS - 1)
        np.add.at(self._histogram, firings.feature * np.int64(_BINS) + bin_, 1)

    def percentile(self, share: float) -> np.ndarray:
        """Activation below which ``share`` of a feature's firings lie, ``[latents]``; 0 for silent features."""
        counts = self._histogram.reshape(-1, _BINS)
        cumulative = counts.cumsum(1)
        wanted = share * self.firings
        bin_ = (cumulative < wanted[:, None]).sum(1).clip(max=_BINS - 1)
        rows = np.arange(len(bin_))
        inside = counts[rows, bin_]
        before = cumulative[rows, bin_] - inside
        part = np.divide(wanted - before, inside, out=np.zeros(len(bin_)), where=inside > 0)
        value = 2.0 ** (_LOW + (bin_ + part.clip(0, 1)) / _PER_OCTAVE)
        return np.where(self.firings > 0, np.minimum(value, self.maximum), 0.0)


class LinearHistograms:
    """Histograms of every feature's firings over ``[0, its maximum]``."""

    def __init__(self, maximum: np.ndarray, bins: int) -> None:
        self._scale = np.divide(
            bins, maximum, out=np.zeros_like(maximum, dtype=np.float64), where=maximum > 0
        )
        self.counts = np.zeros((len(maximum), bins), np.int64)

    def add(self, firings: Firings) -> None:
        bins = self.counts.shape[1]
        bin_ = (firings.value * self._scale[firings.feature]).astype(np.int64).clip(0, bins - 1)
        np.add.at(self.counts.reshape(-1), firings.feature * np.int64(bins) + bin_, 1)


class GroupedCounts:
    """For every group, items with a summed weight and a count.

    Exact until a group has more than 64 items *and* the memory is full; from then on the lightest items
    are forgotten at each merge.
    """

    def __init__(self, items: int, *, memory_bytes: int) -> None:
        self._items = items
        self._limit = max(10_000, min(MOST_PAIRS, memory_bytes // _PAIR_BYTES))
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._pairs = 0

    def add(self, group: np.ndarray, item: np.ndarray, weight: np.ndarray) -> None:
        """Add one firing each of ``item`` in ``group``."""
        for first in range(0, len(group), self._limit):
            some = slice(first, first + self._limit)
            key = group[some].astype(np.int64) * self._items + item[some]
            ones = np.ones(len(key), np.int64)
            part = _sum_by_key(key, weight[some].astype(np.float64), ones)
            self._parts.append((part[0], part[1], part[2]))
            self._pairs += len(part[0])
            if self._pairs > self._limit:
                self._merge(prune=True)

    def top(self, count: int) -> dict[int, list[tuple[int, float, int]]]:
        """Group → its ``count`` heaviest items as (item, mean weight, count)."""
        self._merge(prune=False)
        if not self._parts:
            return {}
        key, total, times = self._parts[0]
        group = key // self._items
        found: dict[int, list[tuple[int, float, int]]] = {}
        for i in _best_per_group(group, total, count):
            entry = (int(key[i] % self._items), float(total[i] / times[i]), int(times[i]))
            found.setdefault(int(group[i]), []).append(entry)
        return found

    def _merge(self, *, prune: bool) -> None:
        if not self._parts:
            return
        key, total, times = _sum_by_key(
            *(np.concatenate(column) for column in zip(*self._parts, strict=True))
        )
        if prune:
            keep = np.sort(_best_per_group(key // self._items, total, KEEP_ITEMS))
            key, total, times = key[keep], total[keep], times[keep]
        self._parts = [(key, total, times)]
        # what is left counts as the floor, so that merging stays rare
        self._pairs = min(len(key), self._limit // 2)


class TokenStatistics:
    """For every feature, the tokens it fires on: summed activation and count, in bounded memory."""

    def __init__(self, vocabulary: int, *, memory_bytes: int = 2**28) -> None:
        self._counts = GroupedCounts(vocabulary, memory_bytes=memory_bytes)

    def add(self, firings: Firings) -> None:
        self._counts.add(firings.feature, firings.chunk.token[firings.row], firings.value)

    def top(self, count: int) -> dict[int, list[tuple[int, float, int]]]:
        """Feature → its ``count`` heaviest tokens as (token, mean activation where it fired, firings)."""
        return self._counts.top(count)


class KeptWindows:
    """For every feature some of the context windows it fires in: the strongest, or a random sample.

    Windows are ranked by their peak or, ``at_random``, by a hash of feature and window, and the first
    ``count`` stay. More of them wait in ``memory_bytes`` until the best are picked.
    """

    def __init__(
        self, latents: int, count: int, *, at_random: bool = False, memory_bytes: int = 2**24
    ) -> None:
        self._count, self._at_random = count, at_random
        self._most_waiting = max(_FEWEST_WAITING, memory_bytes // _WINDOW_BYTES)
        self._floor = np.zeros(latents)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._waiting = 0

    @property
    def held(self) -> int:
        """Pairs of feature and window in memory, those that wait included."""
        return sum(len(feature) for feature, *_ in self._parts)

    def add(self, firings: Firings) -> None:
        key = firings.feature.astype(np.int64) << 40 | firings.window
        first = _run_starts(key)
        if not len(first) or not self._count:
            return
        peak = np.maximum.reduceat(firings.value, first)
        rank = _scatter(key[first]) if self._at_random else peak.astype(np.float64)
        feature, window = firings.feature[first], firings.window[first]
        good = rank > self._floor[feature]
        self._parts.append((feature[good], window[good].astype(np.int64), peak[good], rank[good]))
        self._waiting += int(good.sum())
        if self._waiting > self._most_waiting:
            self._compact()

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feature, window and peak of all kept pairs, by feature and then in their rank."""
        self._compact()
        if not self._parts:
            return np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.float32)
        feature, window, peak, _ = self._parts[0]
        return feature, window, peak

    def _compact(self) -> None:
        if not self._parts:
            return
        feature, window, peak, rank = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        keep = _best_per_group(feature, rank, self._count)
        feature, window, peak, rank = feature[keep], window[keep], peak[keep], rank[keep]
        self._parts = [(feature, window, peak, rank)]
        self._waiting = 0
        full = np.bincount(feature, minlength=len(self._floor)) == self._count
        last = np.flatnonzero(np.diff(feature, append=-1))
        lowest = np.zeros_like(self._floor)
        lowest[feature[last]] = rank[last]
        self._floor = np.where(full, lowest, 0)


def spread_over_quantiles(
    feature: np.ndarray, window: np.ndarray, peak: np.ndarray, *, groups: int, each: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a random sample of windows, ``each`` from every quantile group of their peaks.

    Returns:
        Feature, window and group (1 the strongest … ``groups`` the weakest), by feature and group.
    """
    order = np.lexsort((-peak, feature))
    feature, window = feature[order], window[order]
    first = _run_starts(feature)
    sizes = np.diff(np.append(first, len(feature)))
    rank = np.arange(len(feature)) - np.repeat(first, sizes)
    group = rank * groups // np.repeat(sizes, sizes)
    # by another draw than the one that chose the sample, so that the two are independent
    key = feature.astype(np.int64) * groups + group
    chosen = _best_per_group(key, _scatter(~(feature.astype(np.int64) << 40 | window)), each)
    keep = chosen[np.lexsort((rank[chosen], key[chosen]))]
    return feature[keep], window[keep], group[keep] + 1


def _scatter(key: np.ndarray) -> np.ndarray:
    """A number in (0, 1] per key that looks random (splitmix64)."""
    with np.errstate(over="ignore"):
        x = key.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) / 2**53 + 2.0**-54


def _run_starts(key: np.ndarray) -> np.ndarray:
    """Where each run of equal keys begins, in a sorted array."""
    if not len(key):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))


def _sum_by_key(key: np.ndarray, *columns: np.ndarray) -> tuple[np.ndarray, ...]:
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = _run_starts(key)
    return (
        key[first],
        *(np.add.reduceat(column[order], first) if len(first) else column[:0] for column in columns),
    )


def _best_per_group(group: np.ndarray, value: np.ndarray, count: int) -> np.ndarray:
    """Indices of the ``count`` largest values of each group, by group and then downwards."""
    order = np.lexsort((-value, group))
    ordered = group[order]
    first = _run_starts(ordered)
    rank = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    return order[rank < count]
