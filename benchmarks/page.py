"""The page of results.

Measured sections stand between markers; everything outside them is written by hand and stays as it is.
"""

from __future__ import annotations

import re

_NEW = """# Benchmarks

Measured by `make bench` (`python -m benchmarks --help`), section by section.
"""
SECTION = re.compile(
    r"<!-- measured: (?P<title>.+?) -->\n(?P<text>.*?)\n<!-- end of measured -->\n", re.DOTALL
)
# The last line of figures: a date first, and then where and how.
STAMP = re.compile(r"^\d{4}-\d\d-\d\d, .*$", re.MULTILINE)


def merged(page: str, title: str, text: str) -> str:
    """The page with one section measured anew: in place of the older one, or else after all others."""
    section = f"<!-- measured: {title} -->\n{text.strip()}\n<!-- end of measured -->\n"
    page = page or _NEW
    found = list(SECTION.finditer(page))
    for match in found:
        if match["title"] == title:
            return page[: match.start()] + section + page[match.end() :]
    place = found[-1].end() if found else len(page)
    return page[:place] + "\n" + section + page[place:]
