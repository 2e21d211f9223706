"""Where text comes from: files, folders, or a Hub dataset, as a stream of documents."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from microscope.activations.manifest import Split
from microscope.errors import MicroscopeError
from microscope.params.datasets import check_dataset_id
from microscope.texts import TextFile, text_files
from microscope.texts.decoding import sound
from microscope.texts.fields import TextField
from microscope.texts.pieces import LARGE_TEXT, pieces, segments

_FEW_DOCUMENTS = 20
# Texts kept in memory while they are put in order; what is more waits in a temporary file.
MEMORY_BYTES = 64 * 2**20
# How far a corpus is looked through for documents of both sides of the split.
_LOOKED_THROUGH = 64 * 2**20


class Document(NamedTuple):
    """One text and the side of the split its content puts it on."""

    text: str
    split: Split


class Corpus:
    """Documents in a fixed order, split by their own content.

    Whether a document is held out depends on a hash of its text alone, so it stays held out in every
    recording with the same share. A corpus of fewer than twenty documents is cut into paragraphs
    first, since one or two held-out documents would say little (``segmentation`` tells). Where all
    documents of a small corpus would be on one side, the one nearest to the other side is put there.
    """

    def __init__(self, texts: Iterable[str], *, description: str, held_out: float) -> None:
        self.description = description
        self.segmentation: Literal["documents", "paragraphs"] = "documents"
        self._held_out = held_out
        stream = (text for text in texts if text.strip())
        head = list(itertools.islice(stream, _FEW_DOCUMENTS))
        if not head:
            raise MicroscopeError(
                "corpus_empty",
                f"The corpus ({description}) contains no text.",
                "Give files with text in them.",
            )
        if len(head) < _FEW_DOCUMENTS:
            self.segmentation = "paragraphs"
            head = segments(head)
            if len(head) < 2:
                raise MicroscopeError(
                    "corpus_too_small",
                    f"The corpus ({description}) is one short paragraph: nothing could be held out for evaluation.",
                    "Give at least two paragraphs or documents.",
                )
        self._moved: dict[bytes, Split] = {}
        self._look_through(head, stream)
        self._texts = itertools.chain(head, stream)

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts:
            yield Document(text, self._split(_digest(text)))

    def _look_through(self, head: list[str], stream: Iterator[str]) -> None:
        """Read on until there are documents on both sides, and move one if all of a corpus is on one."""
        digests = [_digest(text) for text in head]
        sides = {self._split(digest) for digest in digests}
        size = sum(map(len, head))
        while len(sides) < 2:
            text = next(stream, None)
            if text is None:
                self._moved = moved(digests, next(iter(sides)), self.description)
                return
            head.append(text)
            digests.append(_digest(text))
            sides.add(self._split(digests[-1]))
            size += len(text)
            if size > _LOOKED_THROUGH:
                return

    def _split(self, digest: bytes) -> Split:
        if digest in self._moved:
            return self._moved[digest]
        return "held_out" if _share(digest) < self._held_out else "train"


def moved(digests: Sequence[bytes], side: Split, description: str) -> dict[bytes, Split]:
    """The document to take to the other side where all are on one: the one nearest to it by its content.

    Raises:
        MicroscopeError: ``corpus_too_small`` when all documents are the same.
    """
    if len(set(digests)) < 2:
        raise MicroscopeError(
            "corpus_too_small",
            f"The text to record ({description}) is one document: nothing could be held out for evaluation.",
            "Give more documents, record more tokens, or use fewer of each document with --tokens-per-document.",
        )
    return {min(digests): "held_out"} if side == "train" else {max(digests): "train"}


def open_corpus(
    *,
    text: Sequence[str] = (),
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    text_field: str = "text",
    held_out: float,
    seed: int = 0,
) -> Corpus:
    """Open files or a Hub dataset.

    Documents of local files are ordered by a seeded hash of their content, so that the first million
    tokens are a fair sample; Hub datasets are streamed in their own order.

    Raises:
        MicroscopeError: ``no_corpus``, ``corpus_empty``, ``corpus_too_small``, ``no_such_file``,
            ``wrong_file_type``, ``bad_corpus_file``, ``no_text_field``, ``bad_dataset`` or ``unknown_dataset``.
    """
    if dataset:
        texts: Iterable[str] = _hub_documents(dataset, dataset_config, dataset_split, text_field)
        return Corpus(texts, description=f"{dataset} ({dataset_split})", held_out=held_out)
    if not text:
        raise MicroscopeError(
            "no_corpus", "No text was given.", "Name files with --text or a Hub dataset with --dataset."
        )
    documents = (document for file in text_files(text) for document in TextFile(file, text_field))
    names = ", ".join(Path(t).name for t in text)
    return Corpus(_shuffled(documents, seed), description=names, held_out=held_out)


def _shuffled(documents: Iterable[str], seed: int) -> Iterator[str]:
    """Texts in the order of a seeded hash; 24 bytes a document are in memory whatever their size."""
    keys, lengths = array("Q"), array("Q")
    with tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES) as spool:
        for document in documents:
            raw = document.encode("utf-8", "surrogatepass")
            digest = hashlib.sha256(f"{seed}:".encode() + raw).digest()
            keys.append(int.from_bytes(digest[:8], "big"))
            lengths.append(len(raw))
            spool.write(raw)
        ends = np.cumsum(np.array(lengths, dtype=np.int64))
        for index in np.argsort(np.array(keys, dtype=np.uint64), kind="stable").tolist():
            spool.seek(int(ends[index]) - lengths[index])
            yield spool.read(lengths[index]).decode("utf-8", "surrogatepass")


def _hub_documents(name: str, config: str | None, split: str, text_field: str) -> Iterator[str]:
    check_dataset_id(name)
    if Path(name).exists():
        raise MicroscopeError(
            "bad_dataset",
            f"There is a file or folder '{name}' here, which would be read instead of the Hub's dataset.",
            "Name files with --text, or work in another folder.",
        )
    from datasets import load_dataset

    field = TextField(text_field, name)
    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            text = field.of(row, f"row {number}")
            if text is None:
                continue
            yield from pieces((sound(text),)) if len(text) > LARGE_TEXT else (sound(text),)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise MicroscopeError(
            "unknown_dataset",
            f"The dataset '{name}' cannot be read: {reason}",
            "Check the name, its configuration and the network.",
        ) from error


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _share(digest: bytes) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(digest[:8], "big") / 2**64
