"""Where a command is to write: tried before the work, which may take hours."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from microscope.errors import MicroscopeError
from microscope.outputs import check_output_folder
from microscope.params import JobParams, PatchCreateParams, ProvenanceParams
from microscope.staging import make_folder, unmake

# Commands whose output is one file.
_FILES: tuple[type[JobParams], ...] = (PatchCreateParams, ProvenanceParams)


def check_outputs(params: JobParams) -> None:
    """Whether the places that the parameters name can be written to.

    Raises:
        MicroscopeError: ``bad_output``.
    """
    out, report = getattr(params, "out", None), getattr(params, "report", None)
    if out:
        (_check_file if isinstance(params, _FILES) else _check_folder)(Path(out))
    if report:
        _check_file(Path(report))


def _check_folder(folder: Path) -> None:
    """Permissions say less than trying: of a disk that may only be read, for one."""
    check_output_folder(folder)
    made: list[Path] = []
    try:
        made = make_folder(folder)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise MicroscopeError(
            "bad_output",
            f"Results cannot be written to '{str(folder)[:300]}': {error.strerror}.",
            "Choose another --out: a folder that exists or can be made.",
        ) from error
    finally:
        unmake(made)


def _check_file(path: Path) -> None:
    _check_folder(path.parent)
    if path.is_dir():
        raise MicroscopeError(
            "bad_output", f"'{path}' is a folder; a file is to be written.", "Choose another name."
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise MicroscopeError("bad_output", f"'{path}' may not be written.", "Choose another name.")
