"""What was measured, as Markdown."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.contest import Contest, Settings, Spread, Standing, run


class Section(NamedTuple):
    """A part of the page, measured when asked for; its text begins with the title as a heading."""

    title: str
    measure: Callable[[], str]


def of_contests(
    contests: Callable[[Settings], Iterator[Contest]],
) -> Callable[[Settings], Iterator[Section]]:
    """A subject made of contests as one made of sections."""

    def sections(settings: Settings) -> Iterator[Section]:
        for contest in contests(settings):
            yield Section(contest.title, lambda c=contest: section(c, run(c, settings), settings))

    return sections


def machine() -> str:
    """Processor, cores and Python of this machine in a line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found[1].strip() if found else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(value: Spread) -> str:
    return f"{value.median:.2f} ({value.spread:.2f})"


def section(contest: Contest, standings: list[Standing], settings: Settings) -> str:
    """One contest: what it is about, a table of rates and ratios, and when and where it ran."""
    columns = [s for s in standings if s.contestant.compared and s.rates]
    extras = list(dict.fromkeys(name for s in standings for name in s.extra))
    header = ["", contest.unit, "spread", *(f"{s.contestant.name} ÷ this" for s in columns), *extras]
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for standing in standings:
        name = standing.contestant.name
        if standing.contestant.role == "floor":
            name = f"*{name}*"
        if not standing.rates:
            lines.append(f"| {name} | {standing.missing} |" + " |" * (len(header) - 2))
            continue
        rate = Spread.of(standing.rates)
        cells = [name, _number(rate.median), f"{rate.spread:.2f}"]
        cells += ["1" if s is standing else _ratio(s.ratio(standing)) for s in columns]
        cells += [_number(Spread.of(standing.extra[e]).median) if e in standing.extra else "" for e in extras]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_in_short(columns, standings)]
    versions: dict[str, str] = {}
    for standing in standings:
        versions |= standing.versions
    told = footer(settings, max((len(s.rates) for s in standings), default=0), versions)
    if any(s.contestant.role == "floor" for s in standings):
        told += "\n*Italic*: a floor, the least any way has to do."
    return re.sub(
        r"\n{3,}", "\n\n", "\n".join([f"## {contest.title}", "", contest.about, "", *lines, "", told])
    )


def _in_short(columns: list[Standing], standings: list[Standing]) -> Iterator[str]:
    """A sentence for each of ours: how it stands to the fastest peer and to the fastest floor."""
    for mine in columns:
        said = []
        for role in ("peer", "floor"):
            others = [s for s in standings if s.contestant.role == role and s.rates and s is not mine]
            if others:
                best = max(others, key=lambda s: Spread.of(s.rates).median)
                said.append(f"{mine.ratio(best).median:.2f} × {best.contestant.name}")
        if said:
            yield f"- {mine.contestant.name}: {', '.join(said)}"


def goal(what: str, value: float, *, most: float | None = None, least: float | None = None) -> str:
    """A line that says whether a figure keeps its bound."""
    kept = (most is None or value <= most) and (least is None or value >= least)
    bound = f"≤ {most:g}" if most is not None else f"≥ {least:g}"
    return f"- goal {'met' if kept else '**missed**'}: {what} {value:.3g} ({bound})"


def footer(settings: Settings, rounds: int, versions: Mapping[str, str] | None = None) -> str:
    """When, where and how often was measured, and how busy the machine was before."""
    used = "".join(f"; {name} {version}" for name, version in sorted((versions or {}).items()))
    times = "1 round" if rounds == 1 else f"{rounds} rounds"
    size = "quick" if settings.quick else "full"
    threads = "1 thread" if settings.threads == 1 else f"{settings.threads} threads"
    load = f"load {settings.load:.1f} before"
    return f"{datetime.date.today()}, {machine()}, {load}, {threads}, {size}, {times}{used}."
