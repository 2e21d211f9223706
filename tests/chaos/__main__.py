"""Command line of the chaos."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import alone


def main() -> int:
    """Run and report; the status says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument(
        "--pause", type=float, default=6.0, metavar="SECONDS", help="longest between two kills"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="data folder, kept; default a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = alone(folder.absolute(), kills=options.kills, seed=options.seed, longest_pause=options.pause)
    print(report.text())
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
