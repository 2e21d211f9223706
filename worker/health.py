"""``python -m worker.health compute | agent | beat``: whether that process of this host works. Exit status 1: it does not.

For health checks of containers and services; the web process is asked for ``/readyz`` instead.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from apps.core.heartbeat import MAX_AGE_SECONDS, age

ROLES = ("compute", "agent", "beat")


def main(arguments: list[str] | None = None) -> int:
    """Look at the role's heartbeat and say what is there."""
    parser = argparse.ArgumentParser(prog="python -m worker.health", description=__doc__)
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--data-dir", type=Path, default=Path(os.environ.get("WORKBENCH_DATA_DIR") or "var"))
    parser.add_argument("--max-age", "--patience", type=float, default=MAX_AGE_SECONDS, metavar="SECONDS")
    options = parser.parse_args(arguments)
    seconds = age(options.data_dir / "run", options.role)
    if seconds is None:
        print(f"{options.role} has sent no heartbeat yet in {options.data_dir}.")
    elif seconds > options.max_age:
        print(f"{options.role} sent its last heartbeat {seconds:.0f} s ago.")
    else:
        print(f"{options.role} works.")
        return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
