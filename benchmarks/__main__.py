"""``python -m benchmarks``: measure against peers and floors, print and keep the tables."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import (
    chart,
    features,
    live,
    memory,
    page,
    portal,
    provenance,
    quality,
    report,
    store,
    trace,
    train,
    upload,
)
from benchmarks.contest import ROOT, Settings

SUBJECTS: dict[str, Callable[[Settings], Iterator[report.Section]]] = {
    "trace": report.of_contests(trace.contests),
    "train": report.of_contests(train.contests),
    "store": report.of_contests(store.contests),
    "features": report.of_contests(features.contests),
    "memory": report.of_contests(memory.contests),
    "live": live.sections,
    "upload": upload.sections,
    "portal": portal.sections,
    "provenance": provenance.sections,
    "quality": quality.sections,
}
PAGE = ROOT / "docs" / "benchmarks.md"
# What takes longer than all the others together is measured only when it is named.
USUAL = [name for name in SUBJECTS if name != "quality"]


def _bytes(text: str) -> int:
    """``2GB``, ``500MB`` or a number of bytes."""
    units = {"GB": 10**9, "MB": 10**6, "KB": 10**3}
    factor = units.get(text[-2:].upper(), 1)
    return int(float(text[:-2] if factor > 1 else text) * factor)


def main() -> None:
    """Measure the subjects asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "subjects", nargs="*", metavar="SUBJECT", help=f"{', '.join(SUBJECTS)}; default all but quality"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only tables whose title holds this")
    parser.add_argument("--quick", action="store_true", help="little data and two rounds: does it work?")
    parser.add_argument("--rounds", type=int, help="rounds of every contest; default 7")
    parser.add_argument("--size", type=_bytes, help="of the file that is uploaded; default 2GB")
    parser.add_argument("--threads", type=int, help="of every contestant; default one per core")
    parser.add_argument(
        "--data", type=Path, default=ROOT / "var" / "benchmarks", help="where inputs are kept"
    )
    for name in ("peers", "nnsight"):
        parser.add_argument(
            f"--{name}",
            type=Path,
            default=ROOT / f".venv-{name}" / "bin" / "python",
            help="Python of an environment made by `make peers`",
        )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="keep the tables in this Markdown file, in their sections"
    )
    options = parser.parse_args()
    unknown = set(options.subjects) - set(SUBJECTS)
    if unknown:
        parser.error(f"unknown subject {', '.join(sorted(unknown))}: choose from {', '.join(SUBJECTS)}")
    settings = Settings(
        data=options.data.absolute(),
        rounds=options.rounds or (2 if options.quick else 7),
        threads=options.threads or int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))),
        quick=options.quick,
        pythons={"peers": options.peers.absolute(), "nnsight": options.nnsight.absolute()},
        load=os.getloadavg()[0],
        upload_bytes=options.size or (10**8 if options.quick else 2 * 10**9),
    )
    for name in options.subjects or USUAL:
        for section in SUBJECTS[name](settings):
            if options.only not in section.title:
                continue
            print(f"measuring: {section.title} …", file=sys.stderr, flush=True)
            text = section.measure()
            print(text, end="\n\n", flush=True)
            if options.write:
                _keep(options.write, section.title, text)


def _keep(file: Path, title: str, text: str) -> None:
    """Put a section onto the page; beside the project's own page lies the README's chart of it."""
    whole = page.merged(file.read_text() if file.exists() else "", title, text)
    file.write_text(whole)
    if file.resolve() == PAGE:
        chart.draw(PAGE)


if __name__ == "__main__":
    main()
