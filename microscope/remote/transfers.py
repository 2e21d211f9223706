"""Files to and from a portal: every transfer continues where an earlier one was cut."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from microscope.errors import MicroscopeError
from microscope.progress import SILENT, Progress
from microscope.remote.connection import Connection, as_error
from microscope.remote.records import File, Upload

PIECE = 4 << 20
_READ = 1 << 20
_CUTS = 20


def upload(connection: Connection, path: Path, progress: Progress = SILENT) -> list[str]:
    """Send a file, or all files of a folder, and return the ids of the uploads.

    What an earlier, cut transfer of the same content had sent is not sent again.

    Raises:
        MicroscopeError: ``no_file``, or what the portal refuses.
    """
    files = _files(path)
    sizes = {file: file.stat().st_size for file in files}
    known = [msgspec.convert(row, Upload) for row in connection.pages("uploads") if not row["in_use"]]
    done, ids = 0, []
    with progress.phase("uploading", sum(sizes.values()), "bytes"):
        for file, name in files.items():
            digest = sha256_of(file)
            begun = next(
                (u for u in known if (u.path, u.bytes, u.sha256) == (name, sizes[file], digest)), None
            )
            if begun is None:
                body = {"path": name, "bytes": sizes[file], "sha256": digest}
                begun = msgspec.convert(connection.post("uploads", body), Upload)
            for offset in _send(connection, begun, file):
                progress.advance(done + offset)
            done += sizes[file]
            ids.append(begun.id)
        progress.advance(done, final=True)
    return ids


def download(
    connection: Connection, base: str, files: list[File], out: Path, progress: Progress = SILENT
) -> list[Path]:
    """Fetch files below ``base`` into a folder, checked against their SHA-256.

    Raises:
        MicroscopeError: ``damaged_download``, ``unsafe_path``, or what the portal refuses.
    """
    places = [_place(out, file.path) for file in files]
    done = 0
    with progress.phase("downloading", sum(f.bytes for f in files), "bytes"):
        for file, place in zip(files, places, strict=True):
            if not (place.exists() and sha256_of(place) == file.sha256):
                for offset in _fetch(connection, f"{base}/{file.path}", file, place):
                    progress.advance(done + offset)
            done += file.bytes
        progress.advance(done, final=True)
    return places


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _files(path: Path) -> dict[Path, str]:
    if path.is_file():
        return {path: path.name}
    found = {
        file: file.relative_to(path).as_posix()
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    }
    if not found:
        raise MicroscopeError("no_file", f"There is no file at {path}.", "Check the path.")
    return found


def _send(connection: Connection, upload: Upload, file: Path) -> Iterator[int]:
    """Send what is missing; yields how far it is."""
    url, offset, cuts = f"uploads/{upload.id}", upload.offset, 0
    with file.open("rb") as stream:
        while offset < upload.bytes:
            stream.seek(offset)
            piece = stream.read(PIECE)
            digest = base64.b64encode(hashlib.sha256(piece).digest()).decode()
            headers = {
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": str(offset),
                "Upload-Checksum": f"sha256 {digest}",
            }
            try:
                answer = connection.request("PATCH", url, content=piece, headers=headers)
                offset = int(answer.headers["Upload-Offset"])
            except MicroscopeError as error:
                # A repeated piece may have arrived the first time: the server knows how far it is.
                cuts += 1
                if error.code != "offset_conflict" or cuts > _CUTS:
                    raise
                offset = int(connection.request("HEAD", url).headers["Upload-Offset"])
            yield offset


def _place(out: Path, name: str) -> Path:
    place = (out / name).resolve()
    if not place.is_relative_to(out.resolve()):
        raise MicroscopeError("unsafe_path", f"The portal offers a file outside its folder: '{name}'.")
    return place


def _fetch(connection: Connection, url: str, file: File, place: Path) -> Iterator[int]:
    """Fetch one file, continuing its part; yields how far it is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    cuts = 0
    while (offset := part.stat().st_size if part.exists() else 0) < file.bytes or not part.exists():
        try:
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            with connection.stream(url, headers=headers) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise as_error(answer)
                mode = "ab" if answer.status_code == 206 else "wb"
                offset = offset if mode == "ab" else 0
                with part.open(mode) as stream:
                    for data in answer.iter_bytes(_READ):
                        stream.write(data)
                        offset += len(data)
                        yield offset
        except httpx.TransportError as error:
            cuts += 1
            if cuts > _CUTS:
                raise connection.unreachable(error) from error
    if sha256_of(part) != file.sha256:
        part.unlink()
        raise MicroscopeError(
            "damaged_download",
            f"{file.path} arrived damaged.",
            "Download it again; what was damaged is gone.",
        )
    part.replace(place)
