"""Results in several files that appear all at once, or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

PREFIX = ".writing-"


@contextlib.contextmanager
def staged(folder: Path, *, last: Collection[str]) -> Iterator[Path]:
    """A folder to write results into, which become part of ``folder`` once all of them are written.

    When anything goes wrong before that, a full disk first of all, ``folder`` is as it was. What was there under
    the same names is replaced; a process killed while it replaces leaves none of the files of ``last``.

    Args:
        folder: where the results belong; made with its parents.
        last: names without which the others count for nothing, such as a manifest's.
    """
    made = make_folder(folder)
    for leftover in folder.glob(f"{PREFIX}*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    done = False
    try:
        work = Path(tempfile.mkdtemp(dir=folder, prefix=PREFIX))
        try:
            yield work
            _move(work, folder, last)
            done = True
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        if not done:
            unmake(made)


def unmake(folders: list[Path]) -> None:
    """Remove folders, the first one first, as long as nothing is in them."""
    for place in folders:
        with contextlib.suppress(OSError):  # somebody else has put something there
            place.rmdir()


def make_folder(folder: Path) -> list[Path]:
    """Make a folder; returns what was made, the innermost first."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _move(work: Path, folder: Path, last: Collection[str]) -> None:
    files = sorted(path.relative_to(work) for path in work.rglob("*") if path.is_file())
    for path in files:
        with (work / path).open("rb") as stream:
            os.fsync(stream.fileno())
    for path in files:
        if path.name in last:
            (folder / path).unlink(missing_ok=True)
    for path in sorted(files, key=lambda path: path.name in last):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / path, folder / path)
    for path in work.rglob("*"):
        if path.is_dir():  # an empty one may be part of the result, too
            (folder / path.relative_to(work)).mkdir(parents=True, exist_ok=True)
