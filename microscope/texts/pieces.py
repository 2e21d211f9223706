"""A long text in pieces: cut at empty lines, else at the ends of lines or sentences, else between words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

# A text above this is a collection, not one document: it is cut into pieces of about a hundred thousand characters.
LARGE_TEXT, LARGE_PIECE = 32 * 2**20, 100_000
SEGMENT = 2000
_SMALL_SEGMENT, _WANTED = 200, 20
_EMPTY_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_BREAKS = (
    _EMPTY_LINES,
    re.compile(r"\n"),
    re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|(?<=[\u3002\uff01\uff1f])"),
    re.compile(r"\s+"),
)


def pieces(chunks: Iterable[str]) -> Iterator[str]:
    """A text that arrives in parts, as pieces of one to two hundred thousand characters that lose nothing."""
    held, at = "", 0
    for chunk in chunks:
        held, at = held[at:] + chunk, 0
        while len(held) - at >= 2 * LARGE_PIECE:
            end = _cut(held, at + LARGE_PIECE, at + 2 * LARGE_PIECE)
            yield held[at:end]
            at = end
    if len(held) > at:
        yield held[at:]


def _cut(text: str, first: int, last: int) -> int:
    """The best index to cut a text at, between two others."""
    found = _EMPTY_LINES.search(text, first, last)
    if found is not None:
        return found.end()
    for mark in ("\n", " "):
        at = text.rfind(mark, first, last)
        if at >= 0:
            return at + 1
    return last


def segments(texts: Sequence[str]) -> list[str]:
    """Few texts as segments of about two thousand characters; smaller ones where that would leave few."""
    total = sum(map(len, texts))
    size = min(SEGMENT, max(_SMALL_SEGMENT, total // _WANTED))
    found = [segment for text in texts for segment in _segments(text, size, 0)]
    if len(found) < 2:
        found = [segment for text in texts for segment in _segments(text, max(total // 4, 16), 0)]
    return found


def _segments(text: str, size: int, level: int) -> Iterator[str]:
    """Runs of at least ``size`` characters between two breaks of a level; what is far longer is cut at the next."""
    begin = at = 0
    for found in _BREAKS[level].finditer(text):
        if found.start() - begin < size:
            continue
        yield from _finer(text[begin : found.start()], size, level)
        begin = at = found.end()
    rest = text[begin:] if at else text
    if rest.strip():
        yield from _finer(rest, size, level)


def _finer(segment: str, size: int, level: int) -> Iterator[str]:
    if not segment.strip():
        return
    if len(segment) <= 4 * size:
        yield segment
    elif level + 1 < len(_BREAKS):
        yield from _segments(segment, size, level + 1)
    else:  # not a single space in it
        yield from (segment[first : first + size] for first in range(0, len(segment), size))
