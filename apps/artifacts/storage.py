"""Files on disk: taking a finished folder over, listing it with hashes, reading ranges of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings

CHUNK = 1 << 20
# Folders a job keeps for itself inside its output: not part of what it made.
SCRATCH = ("checkpoints", "tmp", "__pycache__")


def root_of(kind: str) -> Path:
    """The folder artifacts of a kind live in."""
    if kind == "recording":
        return Path(settings.ACTIVATION_DATA_DIR)
    if kind == "sae":
        return Path(settings.SAE_CACHE_DIR)
    return Path(settings.WORKBENCH_ARTIFACT_DIR) / kind


def upload_root() -> Path:
    """The folder uploads grow in; never one a web server or the engine serves from."""
    return Path(settings.WORKBENCH_DATA_DIR) / "uploads"


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Every regular file below the folder with its size and SHA-256, sorted by path.

    Links are left out: what they point at is not part of the folder.
    """
    entries = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SCRATCH and not f.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if name.startswith(".") or path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            entries.append(
                {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}
            )
    return entries


def folders_below(root: Path) -> Iterator[Path]:
    """The folders artifacts of a root are in, and what interrupted work left beside them."""
    for spread in sorted(root.iterdir()) if root.is_dir() else ():
        if spread.is_dir() and len(spread.name) == 2:
            yield from (folder for folder in sorted(spread.iterdir()) if folder.is_dir())
        elif spread.is_dir() and spread.name.startswith("."):
            yield spread


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def drop_scratch(folder: Path) -> None:
    """Remove what a finished job no longer needs."""
    for name in SCRATCH:
        shutil.rmtree(folder / name, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Rename a folder; across file systems, copy beside the target first so that it still appears at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != 18:  # EXDEV
            raise
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        shutil.copytree(source, draft)
        draft.rename(target)
        shutil.rmtree(source)


def remove(folder: Path) -> None:
    """Delete a folder: renamed away first, so nobody ever reads half of it."""
    doomed = folder.with_name(f".deleted-{folder.name}-{os.getpid()}")
    try:
        folder.rename(doomed)
    except FileNotFoundError:
        return
    shutil.rmtree(doomed, ignore_errors=True)


_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a single-range ``Range`` header; None when it is absent or to be ignored.

    Raises:
        ValueError: the range lies outside the file (416).
    """
    match = _RANGE.match(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if first:
        start = int(first)
        stop = min(int(last), size - 1) if last else size - 1
        if last and int(last) < start:
            return None
    else:
        start, stop = max(size - int(last), 0), size - 1
        if int(last) == 0:
            raise ValueError("empty range")
    if start >= size:
        raise ValueError("range starts behind the end")
    return start, stop


async def read_chunks(path: Path, start: int, length: int) -> AsyncIterator[bytes]:
    """Bytes of a file in pieces of one MiB, read in a thread so that the server keeps answering.

    Django's own FileResponse would read the whole file into memory under ASGI.
    """
    stream = await asyncio.to_thread(path.open, "rb")
    try:
        await asyncio.to_thread(stream.seek, start)
        while length > 0:
            chunk = await asyncio.to_thread(stream.read, min(CHUNK, length))
            if not chunk:
                return
            length -= len(chunk)
            yield chunk
    finally:
        stream.close()
