"""Where text comes from: files, folders, or a Hub dataset, as a stream of documents."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microscope.activations.manifest import Split
from microscope.errors import MicroscopeError

_FEW_DOCUMENTS = 20
_SEGMENT_CHARACTERS = 2000
# Texts kept in memory while they are put in order; what is more waits in a temporary file.
_MEMORY_BYTES = 64 * 2**20
# A text file above this is a collection, not one document: it is read and cut as a stream.
_LARGE_TEXT_BYTES, _LARGE_PIECE_CHARACTERS = 32 * 2**20, 100_000
_SUFFIXES = {".txt", ".text", ".md", ".jsonl", ".parquet"}


class Document(NamedTuple):
    """One text and the side of the split its content puts it on."""

    text: str
    split: Split


class Corpus:
    """Documents in a fixed order, split by their own content.

    Whether a document is held out depends on a hash of its text alone, so it stays held out in every
    recording with the same share. A corpus of fewer than twenty documents is cut into paragraphs
    first, since one or two held-out documents would say little (``segmentation`` tells).
    """

    def __init__(self, texts: Iterable[str], *, description: str, held_out: float) -> None:
        self.description = description
        stream = (text for text in texts if text.strip())
        head = list(itertools.islice(stream, _FEW_DOCUMENTS))
        if not head:
            raise MicroscopeError(
                "corpus_empty",
                f"The corpus ({description}) contains no text.",
                "Give files with text in them.",
            )
        self.segmentation: Literal["documents", "paragraphs"] = "documents"
        self._always_held_out: bytes | None = None
        if len(head) < _FEW_DOCUMENTS:
            self.segmentation = "paragraphs"
            head = [segment for text in head for segment in _segments(text)]
            if len(head) < 2:
                raise MicroscopeError(
                    "corpus_too_small",
                    f"The corpus ({description}) is one paragraph: nothing could be held out for evaluation.",
                    "Give at least two paragraphs or documents.",
                )
            if not any(_share(text) < held_out for text in head):
                self._always_held_out = min(_digest(text) for text in head)
        self._texts = itertools.chain(head, stream)
        self._held_out = held_out

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts:
            held = _share(text) < self._held_out or _digest(text) == self._always_held_out
            yield Document(text, "held_out" if held else "train")


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
            ``wrong_file_type``, ``bad_corpus_file``, ``no_text_field`` or ``unknown_dataset``.
    """
    if dataset:
        texts: Iterable[str] = _hub_documents(dataset, dataset_config, dataset_split, text_field)
        return Corpus(texts, description=f"{dataset} ({dataset_split})", held_out=held_out)
    if not text:
        raise MicroscopeError(
            "no_corpus", "No text was given.", "Name files with --text or a Hub dataset with --dataset."
        )
    documents = (d for file in _files(text) for d in read_documents(file, text_field))
    names = ", ".join(Path(t).name for t in text)
    return Corpus(_shuffled(documents, seed), description=names, held_out=held_out)


def _shuffled(documents: Iterable[str], seed: int) -> Iterator[str]:
    """Texts in the order of a seeded hash; 24 bytes a document are in memory whatever their size."""
    keys, lengths = array("Q"), array("Q")
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as spool:
        for document in documents:
            raw = document.encode("utf-8", "surrogatepass")
            digest = hashlib.sha256(f"{seed}:".encode() + raw).digest()
            keys.append(int.from_bytes(digest[:8], "big"))
            lengths.append(len(raw))
            spool.write(raw)
        ends = np.cumsum(np.array(lengths, dtype=np.int64))
        for place in np.argsort(np.array(keys, dtype=np.uint64), kind="stable").tolist():
            spool.seek(int(ends[place]) - lengths[place])
            yield spool.read(lengths[place]).decode("utf-8", "surrogatepass")


def read_documents(file: Path, text_field: str = "text") -> Iterator[str]:
    """Documents of one file, by its content: Parquet rows, JSON lines, or the whole text.

    Raises:
        MicroscopeError: ``wrong_file_type``, ``bad_corpus_file`` or ``no_text_field``.
    """
    with file.open("rb") as stream:
        head = stream.read(65536)
    if head[:4] == b"PAR1":
        yield from _parquet_documents(file, text_field)
        return
    if b"\0" in head:
        raise MicroscopeError(
            "wrong_file_type", f"{file.name} is a binary file.", "Give .txt, .jsonl or .parquet files."
        )
    try:
        if file.suffix == ".jsonl":
            yield from _json_documents(file, text_field)
        elif file.stat().st_size > _LARGE_TEXT_BYTES:
            with file.open(encoding="utf-8") as lines:
                yield from _pieces(lines)
        else:
            yield file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MicroscopeError(
            "wrong_file_type",
            f"{file.name} is not text: byte {error.start} is no UTF-8.",
            "Give .txt, .jsonl or .parquet files.",
        ) from error


def _json_documents(file: Path, text_field: str) -> Iterator[str]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise MicroscopeError(
                    "bad_corpus_file", f"{file.name}, line {number} is not JSON: {error.msg}."
                ) from error
            text = row if isinstance(row, str) else row.get(text_field) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise MicroscopeError(
                    "no_text_field",
                    f"{file.name}, line {number} has no text in '{text_field}'.",
                    "Name the field with --text-field.",
                )
            yield text


def _pieces(lines: Iterable[str]) -> Iterator[str]:
    """A long text as pieces of about a hundred thousand characters, cut at empty lines where there are any."""
    piece: list[str] = []
    size = 0
    for line in lines:
        piece.append(line)
        size += len(line)
        if size >= 2 * _LARGE_PIECE_CHARACTERS or (size >= _LARGE_PIECE_CHARACTERS and not line.strip()):
            yield "".join(piece)
            piece, size = [], 0
    if piece:
        yield "".join(piece)


def _parquet_documents(file: Path, text_field: str) -> Iterator[str]:
    try:
        table = pq.ParquetFile(file)
        if text_field not in table.schema_arrow.names:
            raise MicroscopeError(
                "no_text_field",
                f"{file.name} has no column '{text_field}'.",
                f"It has {', '.join(table.schema_arrow.names)}; name one with --text-field.",
            )
        for batch in table.iter_batches(batch_size=256, columns=[text_field]):
            yield from (text for text in batch.column(0).to_pylist() if isinstance(text, str))
    except (pa.ArrowInvalid, OSError) as error:
        raise MicroscopeError(
            "bad_corpus_file", f"{file.name} cannot be read as Parquet: {error}", "It may be truncated."
        ) from error


def _hub_documents(name: str, config: str | None, split: str, text_field: str) -> Iterator[str]:
    from datasets import load_dataset

    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        for row in rows:
            if text_field not in row:
                raise MicroscopeError(
                    "no_text_field",
                    f"{name} has no field '{text_field}'.",
                    f"It has {', '.join(row)}; name one with --text-field.",
                )
            yield row[text_field]
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise MicroscopeError(
            "unknown_dataset",
            f"The dataset '{name}' cannot be read: {reason}",
            "Check the name, its configuration and the network.",
        ) from error


def _files(paths: Sequence[str]) -> Iterator[Path]:
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in _SUFFIXES and p.is_file())
            if not found:
                raise MicroscopeError(
                    "corpus_empty", f"The folder {name} has no .txt, .jsonl or .parquet files."
                )
            yield from found
        elif path.is_file():
            yield path
        else:
            raise MicroscopeError("no_such_file", f"There is no file or folder '{name}'.")


def _segments(text: str) -> Iterator[str]:
    """Pieces of about two thousand characters, cut between paragraphs."""
    piece: list[str] = []
    for paragraph in text.split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= _SEGMENT_CHARACTERS:
            yield "\n\n".join(piece)
            piece = []
    if "".join(piece).strip():
        yield "\n\n".join(piece)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _share(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(_digest(text)[:8], "big") / 2**64
