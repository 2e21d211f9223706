"""Text of others, taken over once all of it was read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.params.files import ImportCorpusParams
from microscope.progress import SILENT, Progress
from microscope.quarantine.documents import check_corpus


def import_corpus(params: ImportCorpusParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Check a text file and put it into a folder, named by what it holds.

    Raises:
        MicroscopeError: ``no_file``, or what :func:`~microscope.quarantine.check_corpus` raises.
    """
    path, out = Path(params.path), Path(params.out)
    if not path.is_file():
        raise MicroscopeError("no_file", f"There is no file at '{path}'.", "Check the path.")
    found = check_corpus(path, path.name, params.text_field, progress)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f"text{found.suffix}"
    take_over(path, target)
    return {"file": target.name, "bytes": target.stat().st_size, "documents": found.documents}


def take_over(source: Path, target: Path) -> None:
    """Give a file another place: a second name where the file system can, a copy elsewhere."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
