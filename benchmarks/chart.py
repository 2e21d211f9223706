"""The README's chart: how fast each of ours is against its fastest peer, drawn from the page of results."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from benchmarks.page import SECTION, STAMP

_IN_SHORT = re.compile(
    r"^- (?P<mine>.+?): (?P<ratio>[\d.]+) × (?P<peer>.+?)(?:, [\d.]+ × .+)?$", re.MULTILINE
)
_FLOOR = re.compile(r"^\| \*(?P<name>.+?)\* \|", re.MULTILINE)
# The model without an edit: what an edit is measured against, not a way to make one.
_UNEDITED = "plain forward"

_ROW, _TOP, _BOTTOM = 21, 30, 46
_TITLES, _NAMES, _LEFT, _RIGHT, _WIDTH = 16, 270, 425, 715, 900
_TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_STYLE = """
  .paper { fill: #ffffff; } text { fill: #1a1f26; font: 12px system-ui, sans-serif; }
  .title { font-weight: 600; } .quiet { fill: #5c6672; font-size: 11px; } .grid { stroke: #dde2e8; } .one { stroke: #1a1f26; }
  .faster { fill: #1f6fb2; } .slower { fill: #b4560f; }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #15191f; } text { fill: #e4e8ed; } .quiet { fill: #98a2ae; } .grid { stroke: #2b323b; } .one { stroke: #e4e8ed; }
    .faster { fill: #6fb1ec; } .slower { fill: #f2a65a; }
  }
"""


class Ratio(NamedTuple):
    """One bar: ours is ``ratio`` times as fast as ``peer``."""

    title: str
    mine: str
    ratio: float
    peer: str
    stamp: str


def ratios(page: str) -> Iterator[Ratio]:
    """What the page says in short about ours and their fastest peers, in its order; floors are no peers."""
    for section in SECTION.finditer(page):
        stamp = STAMP.search(section["text"])
        floors = set(_FLOOR.findall(section["text"]))
        for said in _IN_SHORT.finditer(section["text"]):
            if stamp and said["peer"] not in floors and said["mine"] != _UNEDITED:
                when = stamp[0].split("; ")[0].rstrip(".")
                yield Ratio(section["title"], said["mine"], float(said["ratio"]), said["peer"], when)


def drawn(page: str) -> str:
    """The chart as SVG, readable on light and dark pages.

    Raises:
        ValueError: the page compares nothing with a peer.
    """
    rows = list(ratios(page))
    if not rows:
        raise ValueError("the page compares nothing with a peer")
    most = max(row.ratio for row in rows)
    end = next(tick for tick in _TICKS if tick >= most * 1.1)
    low = math.log(_TICKS[0])

    def x(ratio: float) -> float:
        share = (math.log(max(ratio, _TICKS[0])) - low) / (math.log(end) - low)
        return _LEFT + share * (_RIGHT - _LEFT)

    bottom = _TOP + _ROW * len(rows)
    parts = [_text(_TITLES, 18, "How many times as fast as the fastest peer (logarithmic)", "title")]
    for tick in _TICKS:
        if tick <= end:
            parts.append(_line(x(tick), _TOP, bottom + 4, "one" if tick == 1 else "grid"))
            parts.append(_text(x(tick), bottom + 17, f"{tick:g} ×", "quiet", "middle"))
    before = ""
    for place, row in enumerate(rows):
        y = _TOP + _ROW * place
        if row.title != before:
            parts.append(_text(_TITLES, y + 15, row.title, "title"))
        before = row.title
        parts.append(_text(_NAMES, y + 15, row.mine.removeprefix("microscope, ")))
        left, right = sorted((x(1), x(row.ratio)))
        kind = "faster" if row.ratio >= 1 else "slower"
        parts.append(
            f'<rect class="{kind}" x="{left:.1f}" y="{y + 4}" width="{right - left:.1f}" height="13"/>'
        )
        parts.append(_text(max(x(1), x(row.ratio)) + 6, y + 15, f"{row.ratio:.2f} × {row.peer}"))
    for place, line in enumerate(_measured(rows)):
        parts.append(_text(_TITLES, bottom + 36 + 14 * place, line, "quiet"))
    height = bottom + _BOTTOM + 14 * (len(_measured(rows)) - 1)
    spoken = "; ".join(f"{row.title}, {row.mine}: {row.ratio:.2f} × {row.peer}" for row in rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img">\n'
        f"<title>{escape(spoken)}</title>\n<style>{_STYLE}</style>\n"
        f'<rect class="paper" width="{_WIDTH}" height="{height}" rx="6"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _measured(rows: list[Ratio]) -> list[str]:
    """A line for each machine and day: what was measured there. Load and rounds are on the page."""
    titles: dict[str, list[str]] = {}
    for row in rows:
        day, machine, *more = row.stamp.split(", ")
        cores = next((part for part in more if part.endswith("cores")), "")
        size = "a quick run" if "quick" in more else ""
        where = ", ".join(filter(None, (day, machine, cores, size)))
        if row.title not in titles.setdefault(where, []):
            titles[where].append(row.title)
    common = max(titles, key=lambda where: len(titles[where]))
    others = [f"{'; '.join(names)}: {where}." for where, names in titles.items() if where != common]
    return [f"Measured {common}." if not others else f"Measured {common}, but for:", *others]


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    chosen = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:g}"{chosen}{placed}>{escape(text)}</text>'


def _line(x: float, top: float, bottom: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{bottom:g}"/>'


def draw(page: Path) -> None:
    """Draw the chart of a page of results beside it."""
    page.with_suffix(".svg").write_text(drawn(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(__file__).parents[1] / "docs" / "benchmarks.md")
