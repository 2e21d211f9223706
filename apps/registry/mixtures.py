"""Texts of a recording: one corpus, or several mixed by weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apps.core.errors import Refused, unknown_reference
from apps.core.hosts import file_elsewhere, this_host
from apps.registry.models import Corpus, LanguageModel, Recording, RecordingPart, ResultState
from apps.registry.references import builtin_corpora

MAX_PARTS = 16


def check_parts(parts: Sequence[tuple[Corpus, float]], model: LanguageModel) -> None:
    """Whether the engine can mix these corpora.

    Raises:
        Refused: ``does_not_exist`` for a corpus of another project, ``corpus_not_ready``, ``same_corpus_twice``,
            ``two_datasets`` or ``text_fields_differ``.
    """
    corpora = [corpus for corpus, _ in parts]
    if any(corpus.project_id != model.project_id for corpus in corpora):
        raise unknown_reference("corpus")
    waiting = [corpus for corpus in corpora if corpus.state != ResultState.READY]
    if waiting:
        raise Refused(
            "corpus_not_ready",
            f"The corpus “{waiting[0]}” is {waiting[0].state}.",
            "Wait until its import has succeeded.",
            status=409,
            attr="corpus",
        )
    if len({corpus.pk for corpus in corpora}) < len(corpora):
        raise Refused(
            "same_corpus_twice", "A corpus is named twice.", "Name it once, with one weight.", attr="mixture"
        )
    if len(corpora) > 1 and sum(c.kind == Corpus.Kind.HUB_DATASET for c in corpora) > 1:
        raise Refused(
            "two_datasets",
            "Only one dataset of the Hub can be part of a mixture.",
            "Upload the other one as a file.",
            attr="mixture",
        )
    fields = sorted({corpus.text_field for corpus in corpora})
    if len(fields) > 1:
        raise Refused(
            "text_fields_differ",
            f"The texts of a mixture are read from one field, and these are in {' and '.join(fields)}.",
            "Add the corpora again with the same text field.",
            attr="mixture",
        )


def store_parts(recording: Recording, parts: Sequence[tuple[Corpus, float]]) -> None:
    """Remember what is mixed; a single corpus is the recording's own."""
    if len(parts) > 1:
        RecordingPart.objects.bulk_create(
            RecordingPart(recording=recording, corpus=corpus, weight=weight, position=position)
            for position, (corpus, weight) in enumerate(parts)
        )


def text_params(recording: Recording) -> dict[str, Any]:
    """The engine's parameters that say where a recording's text is.

    Raises:
        Refused: ``corpus_gone`` when a built-in corpus is no longer offered.
    """
    assert recording.corpus is not None  # only what was imported has none
    parts = list(recording.parts.select_related("corpus__artifact").order_by("position"))
    if not parts:
        return corpus_params(recording.corpus)
    files = [part for part in parts if part.corpus.kind != Corpus.Kind.HUB_DATASET]
    datasets = [part for part in parts if part.corpus.kind == Corpus.Kind.HUB_DATASET]
    params: dict[str, Any] = {
        "text": [_one_text(part.corpus) for part in files],
        "text_field": recording.corpus.text_field,
        # The engine counts the dataset last.
        "weights": [part.weight for part in (*files, *datasets)],
    }
    return {**params, "dataset": datasets[0].corpus.reference} if datasets else params


def corpus_params(corpus: Corpus) -> dict[str, Any]:
    """The engine's parameters that say where a corpus is.

    Raises:
        Refused: ``corpus_gone`` when a built-in one is no longer offered.
    """
    if corpus.kind == Corpus.Kind.HUB_DATASET:
        return {"dataset": corpus.reference, "text_field": corpus.text_field}
    if corpus.kind == Corpus.Kind.BUILTIN:
        return {"text": [_builtin(corpus)], "text_field": corpus.text_field}
    assert corpus.artifact is not None
    folder = corpus.artifact.checkout()
    return {
        "text": [str(folder / entry["path"]) for entry in corpus.artifact.files],
        "text_field": corpus.text_field,
    }


def _one_text(corpus: Corpus) -> str:
    """A corpus as one file or one folder."""
    texts = corpus_params(corpus)["text"]
    if len(texts) == 1:
        return str(texts[0])
    assert corpus.artifact is not None
    return str(corpus.artifact.checkout())


def _builtin(corpus: Corpus) -> str:
    path = builtin_corpora().get(corpus.reference)
    if path is None and corpus.host not in ("", this_host()):
        raise file_elsewhere(
            f"The corpus '{corpus.reference}'",
            corpus.host,
            "Put it below a corpus folder of this host, too, or upload it.",
        )
    if path is None:
        raise Refused(
            "corpus_gone", f"The server no longer offers the corpus '{corpus.reference}'.", "Choose another."
        )
    return str(path)
