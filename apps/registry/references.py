"""References to models and texts: Hub ids by pattern, server paths only where everybody may look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from django.conf import settings

from apps.core.errors import MicroscopeError, Refused
from microscope.params.datasets import check_dataset_id

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"^(?:{_WORD}/)?{_WORD}$")
_REVISION = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,119}$")


def check_hub_id(reference: str, *, attr: str = "reference") -> str:
    """A Hub id as it stands.

    Raises:
        Refused: ``bad_hub_id``.
    """
    if not _HUB_ID.match(reference) or ".." in reference or "--" in reference:
        raise Refused(
            "bad_hub_id",
            f"'{reference[:120]}' is no Hub id.",
            "Write owner/name, for example HuggingFaceTB/SmolLM2-135M.",
            attr=attr,
        )
    return reference


def check_dataset(reference: str) -> str:
    """The id of a dataset of the Hub as it stands; a reader of local files is none.

    Raises:
        Refused: ``bad_hub_id`` or ``bad_dataset``.
    """
    check_hub_id(reference)
    try:
        return check_dataset_id(reference)
    except MicroscopeError as error:
        raise Refused(error.code, error.message, error.hint, attr="reference") from error


def check_revision(revision: str) -> str:
    """A branch, tag or commit as it stands, or nothing.

    Raises:
        Refused: ``bad_revision``.
    """
    if revision and (not _REVISION.match(revision) or ".." in revision):
        raise Refused("bad_revision", f"'{revision[:120]}' is no revision.", attr="revision")
    return revision


def check_path(reference: str, *, roots: Sequence[Path], anywhere: bool, want_file: bool) -> str:
    """An absolute path of the server; a relative one is looked for below the roots.

    Whether a path outside the roots exists is not told to those who may not name it.

    Args:
        anywhere: the actor may name any path.

    Raises:
        Refused: ``path_not_allowed`` or ``no_such_path``.
    """
    what = "file" if want_file else "folder"
    if "\0" in reference or not reference.strip():
        raise Refused("no_such_path", f"There is no such {what}.", attr="reference")
    candidates = [Path(reference)] if Path(reference).is_absolute() else [root / reference for root in roots]
    allowed = False
    for candidate in candidates:
        try:
            path = candidate.resolve()
            if not anywhere and not any(path.is_relative_to(root.resolve()) for root in roots):
                continue
            allowed = True
            if path.is_file() if want_file else path.is_dir():
                return str(path)
        except (
            OSError,
            RuntimeError,
            ValueError,
        ):  # a name too long, links in a circle, letters no name can have
            continue
    shown = ", ".join(str(root) for root in roots)
    if not allowed:
        raise Refused(
            "path_not_allowed",
            "Only staff may name paths outside the server's folders.",
            f"Put it below {shown}, or ask staff.",
            attr="reference",
        )
    raise Refused(
        "no_such_path", f"There is no {what} '{reference[:200]}'.", f"Looked below {shown}.", attr="reference"
    )


def builtin_corpora() -> dict[str, Path]:
    """Texts offered to everybody: the entries of the corpus folders, by name."""
    found: dict[str, Path] = {}
    for root in settings.WORKBENCH_CORPUS_DIRS:
        for entry in sorted(root.iterdir()) if root.is_dir() else ():
            if not entry.name.startswith("."):
                found.setdefault(entry.name, entry)
    return found


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
