"""All files of an artifact as one zip, written while it is sent."""

from __future__ import annotations

import asyncio
import re
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from django.http import StreamingHttpResponse
from django.utils.http import content_disposition_header

from apps.artifacts.models import Artifact
from apps.artifacts.storage import CHUNK


class _Pipe:
    """What zipfile writes to and a response takes from; it never goes back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: Any) -> int:
        """Keep it for the next :meth:`take`."""
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere."""

    def take(self) -> bytes:
        """Everything since the last time."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def zip_chunks(folder: Path, names: list[str]) -> Iterator[bytes]:
    """A zip of files, uncompressed (weights and Parquet do not shrink), in pieces of about one MiB."""
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:  # type: ignore[call-overload]
        for name in names:
            # A fixed time: the same files make the same archive.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            info.file_size = (folder / name).stat().st_size
            with (folder / name).open("rb") as source, archive.open(info, "w") as target:
                while data := source.read(CHUNK):
                    target.write(data)
                    yield pipe.take()
    yield pipe.take()


async def _in_threads(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (data := await asyncio.to_thread(next, chunks, None)) is not None:
        if data:
            yield data


def send_archive(artifact: Artifact) -> StreamingHttpResponse:
    """A response with all files of the artifact.

    Raises:
        NotVisible: a file is gone.
    """
    folder, names = artifact.checkout(), [entry["path"] for entry in artifact.files]
    response = StreamingHttpResponse(_in_threads(zip_chunks(folder, names)), content_type="application/zip")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{artifact.kind}-{artifact.project.slug}-{artifact.pk.hex[-6:]}")
    disposition = content_disposition_header(as_attachment=True, filename=f"{name}.zip")
    response["Content-Disposition"] = disposition or "attachment"
    response["X-Content-Type-Options"] = "nosniff"
    return response
