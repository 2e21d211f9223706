"""Choose the windows that show what a feature does, and collect their text."""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from microscope.activations import Chunk
from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.codes import Firings
from microscope.features.statistics import KeptWindows, spread_over_quantiles
from microscope.params.features import Example

# A random sample this many times as large as what is shown, so that quantiles of its peaks mean something.
_OVERSAMPLED = 8
# Tokens around an example with which its first and last may share a character.
_CONTEXT = 3


class Found(NamedTuple):
    """One example: 0 or its quantile group, document, first position, index of the peak, tokens and activations.

    ``before`` and ``after`` are up to three tokens on either side, which may share characters with its own.
    """

    group: int
    doc: int
    pos: int
    peak: int
    tokens: np.ndarray
    values: np.ndarray
    before: np.ndarray
    after: np.ndarray


class ExampleChoice:
    """Over one pass, the strongest windows of every feature and a sample over the quantiles of all its windows."""

    def __init__(self, latents: int, *, strongest: int, quantiles: int, each: int, memory_bytes: int) -> None:
        self._quantiles, self._each = quantiles, each
        half = memory_bytes // 2
        self._strongest = KeptWindows(latents, strongest, memory_bytes=half)
        self._sample = KeptWindows(
            latents, _OVERSAMPLED * quantiles * each, at_random=True, memory_bytes=half
        )

    def add(self, firings: Firings) -> None:
        self._strongest.add(firings)
        self._sample.add(firings)

    def result(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Feature, window and group of every example, by feature and group; no window twice for a feature."""
        feature, window, _ = self._strongest.result()
        group = np.zeros(len(feature), np.int64)
        if self._quantiles and self._each:
            more = spread_over_quantiles(*self._sample.result(), groups=self._quantiles, each=self._each)
            fresh = ~np.isin(
                more[0].astype(np.int64) << 40 | more[1], feature.astype(np.int64) << 40 | window
            )
            feature, window, group = (
                np.concatenate((one, two[fresh]))
                for one, two in zip((feature, window, group), more, strict=True)
            )
        order = np.lexsort((group, feature))  # stable: within a group the order stays
        return feature[order], window[order], group[order]


class Examples:
    """Fills the chosen (feature, window) pairs with tokens and activations around the peak."""

    def __init__(self, feature: np.ndarray, windows: np.ndarray, group: np.ndarray, *, window: int) -> None:
        span = 2 * window + 1
        self._feature, self._window, self._group, self._side = feature, windows, group, window
        self._by_window = np.argsort(windows, kind="stable")
        self._next = 0
        self._tokens = np.zeros((len(feature), span + 2 * _CONTEXT), np.int32)
        self._values = np.zeros((len(feature), span), np.float32)
        # doc, pos of the first token, peak, length; tokens kept in front and behind
        self._meta = np.zeros((len(feature), 6), np.int32)

    def add(self, firings: Firings) -> None:
        """Take what lies in this chunk; chunks come in the order of their windows."""
        chunk = firings.chunk
        last = firings.first_window + len(chunk.starts)
        stop = self._next + np.searchsorted(self._window[self._by_window[self._next :]], last)
        mine = self._by_window[self._next : stop]
        self._next = int(stop)
        key = firings.feature.astype(np.int64) << 40 | firings.window
        wanted = self._feature[mine].astype(np.int64) << 40 | self._window[mine]
        lows, highs = np.searchsorted(key, wanted), np.searchsorted(key, wanted, side="right")
        ends = np.append(chunk.starts[1:], len(chunk.doc))
        text_ends = _text_ends(chunk)
        for slot, low, high in zip(mine.tolist(), lows.tolist(), highs.tolist(), strict=True):
            number = int(self._window[slot]) - firings.first_window
            start, end = int(chunk.starts[number]), int(ends[number])
            rows, values = firings.row[low:high], firings.value[low:high]
            top = int(rows[values.argmax()])
            first, last_row = max(start, top - self._side), min(end, top + self._side + 1)
            length = last_row - first
            before = min(_CONTEXT, first - text_ends[bisect.bisect_right(text_ends, first) - 1])
            after = min(_CONTEXT, text_ends[bisect.bisect_left(text_ends, last_row)] - last_row)
            around = chunk.token[first - before : last_row + after]
            self._tokens[slot, : len(around)] = around
            inside = (rows >= first) & (rows < last_row)
            self._values[slot, rows[inside] - first] = values[inside]
            self._meta[slot] = chunk.doc[first], chunk.pos[first], top - first, length, before, after

    def of(self, feature: int) -> Iterator[Found]:
        """A feature's examples, the strongest first and then by quantile."""
        low, high = (
            np.searchsorted(self._feature, feature),
            np.searchsorted(self._feature, feature, side="right"),
        )
        for slot in range(int(low), int(high)):
            doc, pos, peak, length, before, after = self._meta[slot].tolist()
            ends = np.cumsum((before, length, after))
            front, tokens, behind = np.split(self._tokens[slot, : ends[-1]], ends[:-1])
            values = self._values[slot, :length]
            yield Found(int(self._group[slot]), doc, pos, peak, tokens, values, front, behind)


def _text_ends(chunk: Chunk) -> list[int]:
    """The rows at which a text that runs on without a gap, over windows perhaps, begins or ends; ascending."""
    gaps = (np.diff(chunk.doc) != 0) | (np.diff(chunk.pos) != 1)
    return [0, *(np.flatnonzero(gaps) + 1).tolist(), len(chunk.doc)]


class ExampleTexts(Accumulator):
    def __init__(self, context: AnalysisContext) -> None:
        super().__init__(context)
        params = context.params
        self._choice = ExampleChoice(
            context.sae.config.n_latents,
            strongest=params.examples,
            quantiles=params.quantiles,
            each=params.quantile_examples,
            memory_bytes=context.memory_bytes,
        )

    def first_pass(self, firings: Firings) -> None:
        self._choice.add(firings)

    def between_passes(self) -> None:
        self._examples = Examples(*self._choice.result(), window=self.context.params.window)

    def second_pass(self, firings: Firings) -> None:
        self._examples.add(firings)

    def results(self) -> Iterator[dict[str, Any]]:
        for i in self.context.features.tolist():
            found = [self._example(e) for e in self._examples.of(i)]
            yield {
                "examples": [e for e in found if e.group == 0],
                "quantile_examples": [e for e in found if e.group],
            }

    def _example(self, found: Found) -> Example:
        return Example(
            doc=found.doc,
            pos=found.pos,
            peak=found.peak,
            max=float(found.values[found.peak]),
            texts=self.context.text.each(
                found.tokens.tolist(), before=found.before.tolist(), after=found.after.tolist()
            ),
            values=[round(v, 4) for v in found.values.tolist()],
            group=found.group,
        )
