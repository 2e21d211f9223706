"""Where on this machine models were, by the fingerprint of their weights.

Files for others name a model and not the folder it was in. So that one's own commands find it again all
the same, its place is kept beside the converted models.
"""

from __future__ import annotations

import contextlib
from pathlib import Path, PurePath

from microscope.models.gguf_files import cache_dir


def remember_place(fingerprint: str, reference: str) -> None:
    """Keep where a model with these weights is, if that is a path."""
    if not fingerprint or not reference or not Path(reference).exists():
        return
    # Only a convenience: a cache that cannot be written to stops nothing.
    with contextlib.suppress(OSError):
        file = _file(fingerprint)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(Path(reference).resolve()), encoding="utf-8")


def place_of(fingerprint: str) -> str | None:
    """Where a model with these weights was last, if it is still there."""
    try:
        found = _file(fingerprint).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return found if Path(found).exists() else None


def located(fingerprint: str, reference: str) -> str:
    """What to load a model by that goes by a name only: where it was last on this machine, or else the name."""
    if not reference or Path(reference).exists():
        return reference
    return (place_of(fingerprint) if fingerprint else None) or reference


def _file(fingerprint: str) -> Path:
    return cache_dir() / "places" / f"{PurePath(fingerprint).name}.txt"
