"""Small recordings: how they are asked for, and what is in them."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from microscope.activations import Manifest, read_manifest, record
from microscope.activations import writer as writing
from microscope.activations.manifest import MANIFEST
from microscope.models import LoadedModel
from microscope.params import TraceParams
from microscope.progress import Progress


def trace(folder: Path, model: Path | str, text: Path, **changes: object) -> TraceParams:
    base = {
        "model": str(model),
        "out": str(folder),
        "layers": (1,),
        "text": (str(text),),
        "tokens": 2000,
        "context_length": 32,
        "batch_tokens": 64,
        "held_out": 0.2,
        "dtype": "float32",
        "device": "cpu",
    }
    return TraceParams(**(base | changes))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file; of the manifest, all but how long it took."""
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    manifest = json.loads(found[MANIFEST])
    manifest.pop("seconds")
    return {**found, MANIFEST: json.dumps(manifest).encode()}


class _Killer:
    """Ends this process, as ``kill -9`` does, at the n-th place where something is about to reach the disk.

    Places are each opening of a file for writing, renaming and deleting in the folder, each fsync, and
    the middle of each shard.
    """

    def __init__(self, folder: Path, at: int) -> None:
        self._folder, self._left = str(folder), at

    def install(self) -> None:
        fsync, write_table = os.fsync, writing.pq.write_table

        def watched_fsync(handle: int) -> None:
            self.place()
            fsync(handle)

        def half_written(table: object, where: Path, **options: object) -> None:
            if self._left == 0:
                write_table(table, where, **options)
                os.truncate(where, where.stat().st_size // 2)
            self.place()
            write_table(table, where, **options)

        os.fsync = watched_fsync
        writing.pq.write_table = half_written
        sys.addaudithook(self._hook)

    def place(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        writes = event in ("os.rename", "os.remove", "os.mkdir")
        if event == "open" and isinstance(args[2], int):
            writes = bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if writes and str(args[0]).startswith(self._folder):
            self.place()


def killed(params: TraceParams, loaded: LoadedModel, at: int) -> bool:
    """Record in a process of its own that is killed at a place; False when it came to its end before that."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            _Killer(Path(params.out), at).install()
            record(params, loaded=loaded)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, f"failed at place {at}"
    return os.WIFSIGNALED(status)


def interrupted(
    folder: Path, model: Path | str, text: Path, loaded: LoadedModel | None, **changes: object
) -> Manifest:
    """A recording that was asked to stop after its first commit."""

    class Stop(Progress):
        stop = False

        def checkpoint(self, done: float) -> None:
            self.stop = True

        def cancelled(self) -> bool:
            return self.stop

    from microscope.errors import Cancelled

    with pytest.raises(Cancelled):
        record(trace(folder, model, text, **changes), Stop(), loaded=loaded)
    manifest = read_manifest(folder)
    assert 0 < manifest.documents_read < 30
    return manifest
