"""How strongly a feature fires, and on which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.codes import Firings
from microscope.features.statistics import LinearHistograms, TokenStatistics
from microscope.params.features import HISTOGRAM_BINS, TokenMean


class Activation(Accumulator):
    def between_passes(self) -> None:
        self._histograms = LinearHistograms(self.context.statistics.maximum, HISTOGRAM_BINS)

    def second_pass(self, firings: Firings) -> None:
        self._histograms.add(firings)

    def results(self) -> Iterator[dict[str, Any]]:
        found, density = self.context.statistics, self.context.density
        p999 = found.percentile(0.999)
        for i in self.context.features.tolist():
            firings = int(found.firings[i])
            yield {
                "density": float(density[i]),
                "firings": firings,
                "max_activation": float(found.maximum[i]),
                "mean_activation": float(found.total[i] / max(firings, 1)),
                "p999": float(p999[i]),
                "dead": firings == 0,
                "histogram": self._histograms.counts[i].tolist(),
            }


class TopTokens(Accumulator):
    def __init__(self, context: AnalysisContext) -> None:
        super().__init__(context)
        self._tokens = TokenStatistics(context.loaded.vocab_size, memory_bytes=context.memory_bytes)

    def first_pass(self, firings: Firings) -> None:
        self._tokens.add(firings)

    def results(self) -> Iterator[dict[str, Any]]:
        top, text = self._tokens.top(self.context.params.top_tokens), self.context.text
        for i in self.context.features.tolist():
            yield {
                "top_tokens": [
                    TokenMean(token=t, text=text(t), mean=round(mean, 4), count=count)
                    for t, mean, count in top.get(i, [])
                ]
            }
