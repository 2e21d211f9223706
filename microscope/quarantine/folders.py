"""A whole folder of a stranger: every file by its content, and what nobody needs left alone."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

from microscope.errors import MicroscopeError
from microscope.progress import SILENT, Progress
from microscope.quarantine.archives import BROKEN, METHODS, check_directory
from microscope.quarantine.content import read_head, refuse_foreign
from microscope.quarantine.documents import check_json, check_parquet
from microscope.quarantine.tensors import check_safetensors

ACCEPTED = "Give safetensors, JSON and Parquet; Gemma Scope's params.npz is read, too."
_MAX_ARRAY = 64 * 2**30
_ARRAY_HEADER = 16 * 2**10


def check_folder(folder: Path, progress: Progress = SILENT) -> dict[str, int]:
    """Check every file; returns how many there are of each suffix.

    Raises:
        MicroscopeError: ``no_files``, or what :func:`check_file` raises.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise MicroscopeError("no_files", "There are no files in it.", "Choose the folder again.")
    found: dict[str, int] = {}
    with progress.phase("check", len(files), "files"):
        for number, path in enumerate(files, 1):
            if path.is_symlink():
                raise MicroscopeError("wrong_file_type", f"{path.name} is a link.", ACCEPTED)
            check_file(path, path.relative_to(folder).as_posix())
            found[path.suffix.lower()] = found.get(path.suffix.lower(), 0) + 1
            progress.advance(number, final=number == len(files))
    return found


def check_file(path: Path, name: str) -> None:
    """Check one file by what it contains; its name only says what to expect.

    Raises:
        MicroscopeError: ``pickle_refused``, ``wrong_file_type``, ``bad_safetensors``, ``bad_json``, ``bad_array``
            or ``bad_corpus_file``.
    """
    suffix = Path(name).suffix.lower()
    if suffix == ".npz":
        _check_npz(path, name)
        return
    refuse_foreign(path, name, ACCEPTED)
    if suffix == ".safetensors":
        check_safetensors(path, name)
    elif suffix == ".json":
        check_json(path, name)
    elif suffix == ".parquet":
        check_parquet(path, name)


def _check_npz(path: Path, name: str) -> None:
    """Arrays of numbers only, each header read, none larger than it says."""
    import numpy as np

    if not read_head(path).startswith(b"PK"):
        raise MicroscopeError("wrong_file_type", f"{name} is no NumPy archive.", ACCEPTED)
    reader: Any = np.lib.format
    try:
        check_directory(path)
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if (
                    not info.filename.endswith(".npy")
                    or info.file_size > _MAX_ARRAY
                    or info.flag_bits & 1
                    or info.compress_type not in METHODS
                ):
                    raise MicroscopeError(
                        "bad_array", f"{name} contains {info.filename[:80]}, which is no array."
                    )
                with archive.open(info) as stream:
                    # As much as a sound header has: NumPy believes the length that stands in it.
                    start = io.BytesIO(stream.read(_ARRAY_HEADER))
                version = reader.read_magic(start)
                read = reader.read_array_header_1_0 if version == (1, 0) else reader.read_array_header_2_0
                shape, _, dtype = read(start)
                head = start.tell()
                if dtype.hasobject:
                    raise MicroscopeError(
                        "pickle_refused",
                        f"{name} contains {info.filename[:80]}, which is a pickle.",
                        "Convert it on your own machine.",
                    )
                if int(np.prod(shape, dtype=object)) * dtype.itemsize != info.file_size - head:
                    raise MicroscopeError(
                        "bad_array", f"{info.filename[:80]} in {name} is not as long as its shape."
                    )
    except MicroscopeError:
        raise
    except (*BROKEN, OSError, SyntaxError, TypeError) as error:
        raise MicroscopeError("bad_array", f"{name} cannot be read: {str(error)[:200]}.") from error
