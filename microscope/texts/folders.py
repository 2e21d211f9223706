"""Which files of a folder are text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from microscope.errors import MicroscopeError
from microscope.texts.files import PROSE, SUFFIXES

_COMPRESSED = frozenset({".gz", ".zst", ".bz2", ".xz", ".zip"})
# What libraries and archivers put beside the texts.
_ABOUT = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_README = "readme"


def text_files(paths: Sequence[str]) -> Iterator[Path]:
    """The files that are named, and in named folders, however deep, those whose suffix says that they are text.

    Hidden files, descriptions of data sets, and a README beside files of rows are left out. Links are followed.

    Raises:
        MicroscopeError: ``no_such_file``, ``corpus_empty``, or ``wrong_file_type`` for a folder with
            compressed texts, which would be missing without a word.
    """
    for name in paths:
        path = Path(name).expanduser()
        try:
            if path.is_dir():
                yield from _of_folder(path, name)
                continue
            if path.is_file():
                yield path
                continue
            there = path.exists()
        except (OSError, ValueError) as error:  # a name too long, or with a zero byte
            raise MicroscopeError("no_such_file", f"'{name[:200]}' is no path: {error}.") from error
        if there:
            raise MicroscopeError(
                "no_such_file",
                f"'{name}' is neither a file nor a folder.",
                "Text is read twice: write it to a file.",
            )
        raise MicroscopeError("no_such_file", f"There is no file or folder '{name}'.", "Check the path.")


def _of_folder(folder: Path, name: str) -> list[Path]:
    files = sorted(_walk(folder))
    packed = [
        file
        for file in files
        if file.suffix.lower() in _COMPRESSED and Path(file.stem).suffix.lower() in SUFFIXES
    ]
    if packed:
        raise MicroscopeError(
            "wrong_file_type",
            f"{len(packed)} files of the folder {name} are compressed texts, {packed[0].name} among them.",
            "Unpack them first (gunzip, unzstd, bunzip2), or move them elsewhere.",
        )
    found = [file for file in files if file.suffix.lower() in SUFFIXES and file.name.lower() not in _ABOUT]
    if any(file.suffix.lower() not in PROSE for file in found):
        found = [file for file in found if file.stem.lower() != _README]
    broken = [file for file in found if not file.is_file()]
    if broken:
        raise MicroscopeError(
            "no_such_file", f"{broken[0]} is a link to nothing, or no file.", "Repair it or remove it."
        )
    if not found:
        others = sorted({file.suffix.lower() or file.name for file in files})[:8]
        raise MicroscopeError(
            "corpus_empty",
            f"The folder {name} has no files of text{' (found: ' + ', '.join(others) + ')' if others else ''}.",
            f"Text is in files that end in {', '.join(sorted(SUFFIXES))}; or name a file itself.",
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """Everything in a folder that is no folder; each real folder once, so that links cannot lead in circles."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith((".", "__MACOSX")))
        yield from (Path(parent, one) for one in names if not one.startswith("."))


def _raise(error: OSError) -> None:
    raise MicroscopeError(
        "bad_corpus_file",
        f"The folder {error.filename} cannot be read: {error.strerror}.",
        "Check who may read it.",
    ) from error
