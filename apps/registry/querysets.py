"""Which models, corpora and recordings a user may see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from apps.projects.querysets import InProject

if TYPE_CHECKING:
    from apps.registry.models import Corpus, LanguageModel, Recording  # noqa: F401


class LanguageModelQuerySet(InProject["LanguageModel"]):
    """Models of projects."""

    def for_display(self) -> Self:
        """With the state of the resident worker that holds it."""
        return self.select_related("resident")


class CorpusQuerySet(InProject["Corpus"]):
    """Corpora of projects."""


class RecordingQuerySet(InProject["Recording"]):
    """Recordings of projects."""

    def for_display(self) -> Self:
        """With what a list names."""
        return self.select_related("model", "corpus", "artifact").prefetch_related("parts__corpus")
