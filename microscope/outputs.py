"""Places results are written to: looked at before the work, and replaced in one step that survives a crash."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from microscope.errors import MicroscopeError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def check_output_folder(folder: Path) -> None:
    """Whether a folder is there or could be made, and could be written to; nothing is made yet.

    Raises:
        MicroscopeError: ``bad_output``.
    """
    place = folder
    try:
        os.stat(folder)
    except FileNotFoundError:
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
    except (OSError, ValueError) as error:  # below a file, a name too long, a zero byte
        raise _bad_output(folder, str(getattr(error, "strerror", None) or error)) from error
    is_folder = place.is_dir()
    if not is_folder:
        raise _bad_output(folder, f"{'it' if place == folder else place} is no folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise _bad_output(folder, f"nothing can be written to {'it' if place == folder else place}")


def make_output_folder(folder: Path) -> None:
    """Make a folder with its parents unless it is there.

    Raises:
        MicroscopeError: ``bad_output``; a full disk is an :class:`OSError` still.
    """
    check_output_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise _bad_output(folder, error.strerror or str(error)) from error


def _bad_output(folder: Path, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "bad_output",
        f"Results cannot be written to '{str(folder)[:300]}': {reason}.",
        "Choose another --out: a folder that exists or can be made.",
    )


@contextlib.contextmanager
def told_when_full(where: Path, hint: str) -> Iterator[None]:
    """Around work that writes: a full disk is refused with the place and what to do.

    Raises:
        MicroscopeError: ``disk_full``.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise MicroscopeError("disk_full", f"There is no room left to write to {where}.", hint) from error


def replace_durably(temporary: Path, target: Path) -> None:
    """Give a finished file its name in one step, once its bytes are on the disk."""
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(temporary, target)


def write_durably(target: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, either what was there or all of the new one is there."""
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
