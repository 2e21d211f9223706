"""The page of results, and what the README quotes of it.

Measured sections stand between markers; everything outside them is written by hand and stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NEW = """# Benchmarks

Measured by `make bench` (`python -m benchmarks --help`), section by section.
"""
_SECTION = re.compile(
    r"<!-- measured: (?P<title>.+?) -->\n(?P<text>.*?)\n<!-- end of measured -->\n", re.DOTALL
)
_QUOTES = re.compile(
    r"(?<=<!-- quoted from docs/benchmarks.md -->\n).*?(?=<!-- end of quoted -->)", re.DOTALL
)
# The last line of figures: a date first, and then where and how.
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d, .*$", re.MULTILINE)
_IN_SHORT = re.compile(r"^- (?P<mine>.+?): (?P<ratios>[\d.]+ × .+)$", re.MULTILINE)


def merged(page: str, title: str, text: str) -> str:
    """The page with one section measured anew: in place of the older one, or else after all others."""
    section = f"<!-- measured: {title} -->\n{text.strip()}\n<!-- end of measured -->\n"
    page = page or _NEW
    found = list(_SECTION.finditer(page))
    for match in found:
        if match["title"] == title:
            return page[: match.start()] + section + page[match.end() :]
    place = found[-1].end() if found else len(page)
    return page[:place] + "\n" + section + page[place:]


def quoted(readme: str, page: str) -> str:
    """The README with its quotes as the page has them now.

    Raises:
        ValueError: if the README has no place for them.
    """
    if not _QUOTES.search(readme):
        raise ValueError(
            "the README has no lines between '<!-- quoted from docs/benchmarks.md -->' and its end"
        )
    rows = "".join(f"{row}\n" for row in _rows(page))
    table = f"| | in short | measured |\n|---|---|---|\n{rows}"
    return _QUOTES.sub(lambda _: table, readme)


def _rows(page: str) -> Iterator[str]:
    """A table row for each of ours of which the page says in short how it stands to others."""
    for section in _SECTION.finditer(page):
        stamp = _STAMP.search(section["text"])
        if stamp is None:
            continue
        when = stamp[0].split("; ")[0].rstrip(".")
        for said in _IN_SHORT.finditer(section["text"]):
            yield f"| {section['title']} | {said['mine']}: {said['ratios']} | {when} |"
