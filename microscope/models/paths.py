"""Paths of models on this machine, by the fingerprint of their weights.

Files that are given to others name a model, not the folder it was in. So that commands on this machine find it
again, its path is kept beside the converted models.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePath

from microscope.models.gguf_files import cache_dir


def remember_path(fingerprint: str, reference: str) -> None:
    """Keep the path of a model with these weights; a reference that is no path is not kept."""
    if not fingerprint or not reference or not Path(reference).exists():
        return
    # The path is a convenience: a cache that cannot be written to is ignored.
    with contextlib.suppress(OSError):
        file = _file(fingerprint)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(Path(reference).resolve()), encoding="utf-8")


def path_of(fingerprint: str) -> str | None:
    """The last known path of a model with these weights, if it still exists."""
    try:
        found = _file(fingerprint).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return found if Path(found).exists() else None


def local_reference(fingerprint: str, reference: str) -> str:
    """The reference to load a model by: its last known path on this machine, or else its name."""
    if not reference or Path(reference).exists():
        return reference
    return (path_of(fingerprint) if fingerprint else None) or reference


def _file(fingerprint: str) -> Path:
    return cache_dir() / "places" / f"{PurePath(fingerprint).name}.txt"
