"""Analyses of other packages: what they raise, or return in the wrong shape, ends them and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from microscope.features.accumulator import Accumulator, AnalysisContext
from microscope.features.codes import Firings
from microscope.params.analyses import FeatureAnalysis, Result
from microscope.params.extensions import implementation
from microscope.params.features import AddedAnalysis


class AddedAccumulator(Accumulator):
    """An analysis that may fail: from then on it finds nothing, and ``shown.error`` says why."""

    def __init__(self, declared: FeatureAnalysis, context: AnalysisContext) -> None:
        super().__init__(context)
        self.declared = declared
        self.shown = AddedAnalysis(
            name=declared.name,
            title=declared.title,
            description=declared.description,
            package=declared.package,
            columns=list(declared.columns),
        )
        self._inner: Accumulator | None = None
        self._inner = self._attempt(lambda: implementation(declared, declared.compute, Accumulator)(context))

    def first_pass(self, firings: Firings) -> None:
        if self._inner is not None:
            self._attempt(self._inner.first_pass, firings)

    def between_passes(self) -> None:
        if self._inner is not None:
            self._attempt(self._inner.between_passes)

    def second_pass(self, firings: Firings) -> None:
        if self._inner is not None:
            self._attempt(self._inner.second_pass, firings)

    def results(self) -> Iterator[Result]:
        """One result for every feature, None where there is none."""
        found = (
            None if self._inner is None else self._attempt(lambda inner: iter(inner.results()), self._inner)
        )
        for _ in self.context.features:
            yield None if self._inner is None else self._attempt(self._next, found)

    def _next(self, found: Iterator[Any]) -> Result:
        try:
            value = next(found)
        except StopIteration:
            raise ValueError("it has fewer results than there are features") from None
        columns = len(self.declared.columns)
        if columns:
            rows = msgspec.convert([[_plain(v) for v in row] for row in value], type=list[list[Any]])
            if any(len(row) != columns for row in rows):
                raise ValueError(f"a row does not have the {columns} values of its columns")
            value = rows
        # as it will be read again: what no file can hold is found here
        return msgspec.json.decode(msgspec.json.encode(_plain(value)), type=Result)

    def _attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception as error:  # whatever a stranger's code raises
            self._inner = None
            self.shown.error = (
                f"The analysis '{self.declared.name}' of the package {self.declared.package} failed: "
                f"{type(error).__name__}: {error}"
            )
            return None


def _plain(value: Any) -> Any:
    """A number of NumPy's or torch's as Python's own."""
    return value.item() if hasattr(value, "item") else value
