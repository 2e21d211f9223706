"""JSON as a stream of values: lines, values one after another, and the elements of lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from microscope.errors import MicroscopeError

# Characters one value may have: a whole book, and little beside the memory of a machine that runs models.
MAX_VALUE = 64 * 2**20
_MAX_PARTS = 4_000_000  # values inside of one
_SPACE = re.compile(r"[ \t\n\r\x1e]*")  # a record separator may stand before each value
_BEGINNING = re.compile(r"\[\s*(?=[{\"])|(?=\{)")  # of a list of rows, or of a row
_MARGIN = 16  # an error so close to the end of what was read may be the end's own
# Numbers are never text: as floats, those of any length are read in linear time.
_DECODER = json.JSONDecoder(parse_int=float)


class _Source:
    """Characters not yet used, and the line they begin on."""

    def __init__(self, chunks: Iterator[str], name: str) -> None:
        self._chunks, self._name = chunks, name
        self._text, self._at, self._line, self._counted, self._ended = "", 0, 1, 0, False

    def line(self, at: int | None = None) -> int:
        """The line of an index into the text, by default of the next character."""
        to = self._at if at is None else at
        if to < self._counted:
            return self._line
        self._line += self._text.count("\n", self._counted, to)
        self._counted = to
        return self._line

    def peek(self) -> str:
        """The next character that is no space, or nothing at the end."""
        while True:
            found = _SPACE.match(self._text, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._text) or not self._more(1):
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, self._at = _DECODER.raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                offset = error.pos - self._at  # reading on moves what was read
                cut = _may_go_on(error, self._text)
                pending = len(self._text) - self._at
                if cut and pending <= MAX_VALUE and self._few_values() and self._more(pending):
                    continue
                if cut and (pending > MAX_VALUE or not self._few_values()):
                    raise MicroscopeError(
                        "bad_corpus_file",
                        f"{self._name}, line {self.line()} begins a value of more than {MAX_VALUE // 2**20} MB, "
                        f"or of more than {_MAX_PARTS} parts.",
                        "Write one document a line, as JSON Lines.",
                    ) from error
                raise self.refusal(error.msg, self._at + offset) from error
            except RecursionError as error:
                raise self.refusal("it is nested too deeply") from error

    def refusal(self, reason: str, at: int | None = None) -> MicroscopeError:
        return MicroscopeError(
            "bad_corpus_file",
            f"{self._name}, line {self.line(at)} is not JSON: {reason}.",
            "Correct the line, or write the file again.",
        )

    def _few_values(self) -> bool:
        """Whether what was read can be parsed in little memory: a part may take fifty times its characters."""
        return sum(self._text.count(mark, self._at) for mark in ",[{") <= _MAX_PARTS

    def _more(self, wanted: int) -> bool:
        """Read at least so many characters more, so that a long value is looked at a few times only."""
        self.line()
        parts, size = [self._text[self._at :]], 0
        while size < wanted and not self._ended:
            chunk = next(self._chunks, "")
            self._ended = not chunk
            parts.append(chunk)
            size += len(chunk)
        self._text = "".join(parts)
        self._at = self._counted = 0
        return size > 0


def json_values(chunks: Iterator[str], name: str) -> Iterator[tuple[int, Any]]:
    """Values of a JSON text with the lines they begin on; those of lists one by one, however long the list.

    Numbers are given as floats.

    Raises:
        MicroscopeError: ``bad_corpus_file`` with the line.
    """
    source = _Source(chunks, name)
    while next_one := source.peek():
        if next_one != "[":
            line = source.line()
            yield line, source.value()
            continue
        source.skip()
        if source.peek() == "]":
            source.skip()
            continue
        while True:
            source.peek()
            line = source.line()
            yield line, source.value()
            after = source.peek()
            if after not in ("]", ","):
                raise source.refusal("a list goes on without a comma" if after else "its list does not end")
            source.skip()
            if after == "]":
                break


def _may_go_on(error: json.JSONDecodeError, text: str) -> bool:
    """Whether a value may only be cut off where the text ends."""
    return error.msg.startswith("Unterminated") or error.pos >= len(text) - _MARGIN


def looks_like_json(head: str, *, whole: bool, prose: bool) -> bool:
    """Whether a file whose name does not say so begins as a list of rows or as rows one after another.

    Args:
        head: its first characters.
        whole: they are all of it.
        prose: its name says that it is text, so one object alone may well be a text.
    """
    start = head.lstrip()
    found = _BEGINNING.match(start)
    if found is None:
        return False
    at = found.end()
    try:
        value, end = _DECODER.raw_decode(start, at)
    except json.JSONDecodeError as error:
        return not prose and not whole and _may_go_on(error, start)
    except RecursionError:
        return not prose
    after = start[end:].lstrip()[:1]
    if at:
        return after in (",", "]") or (not after and not whole)
    return isinstance(value, dict) and (not prose or after == "{")
