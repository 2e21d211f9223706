"""Text of others, taken over once all of it was read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from microscope.errors import MicroscopeError
from microscope.outputs import check_output_folder
from microscope.params.files import ImportCorpusParams
from microscope.progress import SILENT, Progress
from microscope.staging import staged
from microscope.texts import TextFile

_TOLD_BYTES = 16 * 2**20


class Corpus(NamedTuple):
    """What kind of text a file holds (its suffix from here on), and how many documents if that is known."""

    suffix: str
    documents: int | None


def check_corpus(path: Path, name: str, text_field: str, progress: Progress = SILENT) -> Corpus:
    """A file of text, read from the first byte to the last as a recording reads it.

    Raises:
        MicroscopeError: ``corpus_empty``, or what :class:`~microscope.texts.TextFile` raises.
    """
    file = TextFile(path, text_field, name)
    documents, told = 0, 0
    with progress.phase("check", file.size, "bytes"):
        for document in file:
            documents += bool(document.strip())
            if file.position - told > _TOLD_BYTES:
                told = file.position
                progress.advance(told)
    if not documents:
        raise MicroscopeError("corpus_empty", f"{name} contains no text.", "Give a file with text in it.")
    return Corpus(file.suffix, None if file.kind == "text" else documents)


def import_corpus(params: ImportCorpusParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Check a text file and put it into a folder, named by what it holds.

    Raises:
        MicroscopeError: ``no_file``, ``bad_output``, or what :func:`check_corpus` raises.
    """
    path, out = Path(params.path), Path(params.out)
    if not path.is_file():
        raise MicroscopeError("no_file", f"There is no file at '{path}'.", "Check the path.")
    check_output_folder(out)
    found = check_corpus(path, path.name, params.text_field, progress)
    name = f"text{found.suffix}"
    with staged(out, last=()) as work:
        take_over(path, work / name)
    return {"file": name, "bytes": (out / name).stat().st_size, "documents": found.documents}


def take_over(source: Path, target: Path) -> None:
    """Give a file another place: a second name where the file system can, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
