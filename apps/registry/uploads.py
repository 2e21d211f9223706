"""Uploaded text: written to disk as it comes, believed only after its content was looked at."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import msgspec

from apps.core.errors import Refused

_LINE_LIMIT = 32 * 2**20
_ACCEPTED = "Give UTF-8 text, JSON Lines or Parquet."
# What people really have under the wrong name, and what must never be opened.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a PyTorch file)",
    b"PK\x05\x06": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF model",
}


class Upload(msgspec.Struct, kw_only=True, frozen=True):
    """An accepted upload."""

    file: str
    bytes: int
    documents: int | None


def receive(chunks: Iterable[bytes], *, name: str, folder: Path, text_field: str, limit: int) -> Upload:
    """Write an upload into ``folder`` and check it. The name only says what the sender believes it is.

    Raises:
        Refused: ``upload_too_large``, ``corpus_empty``, ``wrong_file_type``, ``bad_corpus_file`` or
            ``no_text_field``.
    """
    draft = folder / "upload"
    size = 0
    with draft.open("wb") as stream:
        for chunk in chunks:
            size += len(chunk)
            if size > limit:
                raise too_large(limit)
            stream.write(chunk)
    if size == 0:
        raise _refused("corpus_empty", f"{name} is empty.")
    with draft.open("rb") as stream:
        head = stream.read(8)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise _refused("wrong_file_type", f"{name} is {what}.", _ACCEPTED)
    suffix = Path(name).suffix.lower()
    if head.startswith(b"PAR1") or suffix == ".parquet":
        _check_parquet(draft, size, name)
        kind, documents = ".parquet", None
    else:
        lines = suffix in (".jsonl", ".ndjson") or (
            suffix not in (".txt", ".text", ".md") and head[:1] == b"{"
        )
        kind = ".jsonl" if lines else ".txt"
        documents = _check_text(draft, name, text_field if lines else None)
    target = folder / f"text{kind}"
    draft.rename(target)
    return Upload(file=target.name, bytes=size, documents=documents)


def too_large(limit: int) -> Refused:
    """The refusal of an upload above the limit."""
    return Refused(
        "upload_too_large",
        f"The file is larger than {limit // 2**20} MB.",
        "Split it, put it into a corpus folder of the server, or name a Hub dataset.",
        status=413,
        attr="file",
    )


def _refused(code: str, message: str, hint: str = "") -> Refused:
    return Refused(code, message, hint, attr="file")


def _check_parquet(path: Path, size: int, name: str) -> None:
    """The magic at both ends, and a footer that fits in between. The rest is read in a job, not here."""
    with path.open("rb") as stream:
        start = stream.read(4)
        if start != b"PAR1":
            raise _refused("wrong_file_type", f"{name} is no Parquet file.", _ACCEPTED)
        stream.seek(max(size - 8, 0))
        tail = stream.read(8)
    footer = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != b"PAR1" or footer + 12 > size:
        raise _refused(
            "bad_corpus_file", f"{name} is a Parquet file that ends too early.", "Upload it again, whole."
        )


def _check_text(path: Path, name: str, text_field: str | None) -> int | None:
    """Decode everything; for JSON Lines parse every line. Returns the number of documents if known."""
    documents, filled = 0, False
    with path.open("rb") as stream:
        for number, text in _lines(stream, name):
            if "\0" in text:
                raise _refused("wrong_file_type", f"{name} is a binary file.", _ACCEPTED)
            if not text.strip():
                continue
            if text_field is None:
                filled = True
                continue
            documents += 1
            filled |= bool(_field(text, text_field, name, number).strip())
    if not filled:
        raise _refused("corpus_empty", f"{name} contains no text.", "Give a file with text in it.")
    return documents if text_field is not None else None


def _lines(stream: IO[bytes], name: str) -> Iterable[tuple[int, str]]:
    """Numbered lines, decoded strictly; a very long line comes in pieces that never split a character."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number = 1
    try:
        while raw := stream.readline(_LINE_LIMIT):
            yield number, decoder.decode(raw)
            number += raw.endswith(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _refused(
            "wrong_file_type", f"{name} is not text: line {number} is no UTF-8.", _ACCEPTED
        ) from error


def _field(line: str, text_field: str, name: str, number: int) -> str:
    try:
        row: Any = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deeply")
        raise _refused("bad_corpus_file", f"{name}, line {number} is not JSON: {reason}.") from error
    if not isinstance(row, dict) or not isinstance(row.get(text_field), str):
        found = ", ".join(sorted(map(str, row))[:8]) if isinstance(row, dict) else "no object"
        raise Refused(
            "no_text_field",
            f"{name}, line {number} has no text in '{text_field}' (found: {found}).",
            "Name the field that holds the text.",
            attr="text_field",
        )
    return str(row[text_field])
