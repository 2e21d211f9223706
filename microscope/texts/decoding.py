"""From bytes to characters: UTF-8 as it is, UTF-16 and UTF-32 with their byte order mark, nothing guessed."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from microscope.errors import MicroscopeError

ACCEPTED = "Give UTF-8 text, JSON, JSON Lines, CSV, Parquet or Arrow."
_CHUNK_BYTES = 1 << 20
# The mark of UTF-32 LE begins with that of UTF-16 LE, so the longer ones come first.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def encoding_of(head: bytes) -> tuple[str, int]:
    """The encoding a file's byte order mark says, or UTF-8, and the length of the mark."""
    return next(((name, len(mark)) for mark, name in _MARKS if head.startswith(mark)), ("utf-8", 0))


def decoded(path: Path, name: str, at: Callable[[int], None] = lambda position: None) -> Iterator[str]:
    """The characters of a file, about a megabyte at a time; every line ends with ``\\n``.

    Args:
        path: the file.
        name: what it is called in messages.
        at: told how many bytes were read.

    Raises:
        MicroscopeError: ``wrong_file_type`` for bytes that are no text, with their line.
    """
    with path.open("rb") as stream:
        encoding, mark = encoding_of(stream.read(4))
        stream.seek(mark)
        characters = codecs.getincrementaldecoder(encoding)()
        lines = io.IncrementalNewlineDecoder(None, translate=True)
        line, ended = 1, False
        while not ended:
            raw = stream.read(_CHUNK_BYTES)
            ended = not raw
            try:
                text = characters.decode(raw, ended)
            except UnicodeDecodeError as error:
                line += error.object[: error.start].decode(encoding, "ignore").count("\n")
                raise MicroscopeError(
                    "wrong_file_type",
                    f"{name}, line {line} is no {encoding.upper()} text.",
                    f"Convert it, for example with: iconv -f WINDOWS-1252 -t UTF-8 {name}",
                ) from error
            text = lines.decode(text, ended)
            if "\0" in text:
                line += text[: text.index("\0")].count("\n")
                raise MicroscopeError(
                    "wrong_file_type",
                    f"{name} is a binary file: line {line} has a zero byte.",
                    f"{ACCEPTED} UTF-16 needs its byte order mark.",
                )
            line += text.count("\n")
            at(stream.tell())
            if text:
                yield text


def sound(text: str) -> str:
    """The text without halves of surrogate pairs, which no encoding and no tokenizer takes; they become U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
