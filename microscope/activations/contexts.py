"""From documents to context windows of tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from microscope.activations.corpus import Document, moved
from microscope.activations.manifest import BOS, SPECIAL, Split
from microscope.models.tokens import check_tokens


class TokenisedDocument(NamedTuple):
    """The windows of one document that are to be run: token ids per window, and each window's first position.

    ``source`` says which of several corpora it is from, by number.
    """

    split: Split
    windows: list[np.ndarray]
    starts: list[int]
    digest: bytes
    source: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.windows))


class Tokeniser:
    """Cuts documents into windows of ``length`` tokens that never cross a document's end.

    Windows begin and end with the special tokens the tokenizer itself wraps a text in (a BOS token, or
    [CLS] and [SEP]), given as ``wrapping``. With ``per_document``
    at most that many tokens of a document are used, as windows spread evenly over it. A text that
    brings the wrapping itself, as some corpora do, is not wrapped twice.
    at most that many tokens of a document are used, as windows spread evenly over it. ``vocabulary`` is how
    many tokens the model knows.

    Raises:
        MicroscopeError: ``no_such_token`` when a text has a token that the model does not know.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        length: int,
        wrapping: tuple[Sequence[int], Sequence[int]],
        per_document: int | None,
        vocabulary: int,
    ) -> None:
        self._vocabulary = vocabulary
        self._tokenizer, self._length, self._per_document = tokenizer, length, per_document
        self._before, self._after = (list(part) for part in wrapping)
        self._special = np.array(sorted(tokenizer.all_special_ids), dtype=np.int32)

    def __call__(self, documents: Iterable[Document]) -> Iterator[TokenisedDocument]:
        body = self._length - len(self._before) - len(self._after)
        for document in documents:
            ids = self._tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
            if self._before and ids[: len(self._before)] == self._before:
                ids = ids[len(self._before) :]
            if self._after and ids[-len(self._after) :] == self._after:
                ids = ids[: -len(self._after)]
            check_tokens(ids, self._vocabulary, self._tokenizer, _beginning(document.text))
            starts = list(range(0, len(ids), body))
            if self._per_document and len(ids) > self._per_document:
                keep = max(1, self._per_document // body)
                starts = [starts[int(i)] for i in np.linspace(0, len(starts) - 1, keep).round()]
            windows = [
                np.array(self._before + ids[s : s + body] + self._after, dtype=np.int32) for s in starts
            ]
            digest = hashlib.sha256(document.text.encode()).digest()
            yield TokenisedDocument(document.split, windows, starts, digest)

    def flags(self, window: np.ndarray) -> np.ndarray:
        """Flag bits of each token of a window."""
        flags = np.where(np.isin(window, self._special), SPECIAL, 0).astype(np.uint8)
        if self._before:
            flags[0] |= BOS
        return flags


def _beginning(text: str) -> str:
    shown = " ".join(text[:200].split())[:40]
    return f"The document that begins “{shown}”"


def mixed(
    sources: Sequence[Iterator[TokenisedDocument]], weights: Sequence[float]
) -> Iterator[TokenisedDocument]:
    """Documents of several sources so that each one's share of the tokens follows its weight.

    The next document is always of the source that is furthest behind; one that has ended drops out and
    the others keep their proportions.
    """
    given = [0.0] * len(sources)
    left = list(range(len(sources)))
    while left:
        source = min(left, key=lambda i: given[i] / weights[i])
        document = next(sources[source], None)
        if document is None:
            left.remove(source)
            continue
        given[source] += document.tokens
        yield document._replace(source=source)


def on_both_sides(
    documents: Iterator[TokenisedDocument], tokens: int, description: str
) -> Iterator[TokenisedDocument]:
    """The same documents; where all that make up the first ``tokens`` are on one side of the split, one changes it.

    Which documents those are is known once they are tokenised, and before any is run.

    Raises:
        MicroscopeError: ``corpus_too_small`` when they are a single document.
    """
    head: list[TokenisedDocument] = []
    seen = 0
    while len({document.split for document in head}) < 2 and seen < tokens:
        document = next(documents, None)
        if document is None:
            break
        head.append(document)
        seen += document.tokens
    sides = {document.split for document in head}
    if len(sides) == 1:
        changed = moved([document.digest for document in head], sides.pop(), description)
        head = [d._replace(split=changed.get(d.digest, d.split)) for d in head]
    yield from head
    yield from documents
