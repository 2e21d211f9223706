"""Paths of Unix sockets, which the system allows about a hundred bytes."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

_LIMIT = 100


def short_path(folder: Path, name: str) -> Path:
    """The socket of a name in a folder, or in a private temporary folder where the path would be too long."""
    path = folder / name
    if len(os.fsencode(path)) <= _LIMIT:
        return path
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]
    private = Path(tempfile.gettempdir()) / f"workbench-{os.getuid()}-{digest}"
    private.mkdir(mode=0o700, exist_ok=True)
    return private / name
