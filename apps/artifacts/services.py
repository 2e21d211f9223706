"""Taking over finished folders and giving files out."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

from django.db import transaction
from django.http import HttpResponse, HttpResponseRedirect, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header

from apps.artifacts import blobs, storage
from apps.artifacts.models import Artifact
from apps.artifacts.stores import blob_store
from apps.audit import services as audit
from apps.core.errors import NotVisible, Refused
from apps.core.ids import uuid7

_TYPES = {
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
# Reports carry their own scripts and styles: they may draw, and nothing else.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; frame-ancestors 'self'"
)


WEIGHTS = (Artifact.Kind.SAE, Artifact.Kind.EXPORT, Artifact.Kind.BUNDLE, Artifact.Kind.RECORDING)


def target_of(kind: str, name: UUID) -> Path:
    """Where the artifact of that id will be."""
    return storage.root_of(kind) / _relative(name)


def _relative(name: UUID) -> str:
    # UUIDv7 starts with the time: the last digits spread folders evenly.
    return f"{name.hex[-2:]}/{name}"


def commit_folder(
    *, project_id: UUID, kind: str, source: Path, name: UUID, files: list[dict[str, Any]]
) -> Artifact:
    """Take over a finished folder. Call inside the transaction that makes its results visible.

    The folder is renamed last and renamed back if the transaction fails afterwards; a process killed
    between the two leaves it at :func:`target_of`, where the next attempt finds it.

    Args:
        name: id the folder is named after, so that a retry ends in the same folder.
        files: what :func:`list_folder` said, taken before the transaction because it reads everything.
    """
    artifact = Artifact.objects.create(
        project_id=project_id,
        kind=kind,
        path=_relative(name),
        files=files,
        bytes=sum(entry["bytes"] for entry in files),
    )
    if not blob_store().local:
        blobs.require_blobs(files)
    folder = artifact.local_path
    storage.move(source, folder)
    # Shared only now: until here a failed attempt may take its folder back and write into it again.
    transaction.on_commit(lambda: _share(folder, files), robust=True)
    return artifact


def _share(folder: Path, files: list[dict[str, Any]]) -> None:
    if blob_store().local:
        blobs.keep(folder, files)


def list_folder(folder: Path) -> list[dict[str, Any]]:
    """The manifest of a finished folder; with a remote store its contents are there afterwards.

    Not inside a transaction: it reads, and perhaps uploads, everything.
    """
    files = storage.list_files(folder)
    blobs.keep_before_commit(folder, files)
    return files


def create_from_blobs(*, project_id: UUID, kind: str, files: list[dict[str, Any]]) -> Artifact:
    """A manifest over contents that are in the store already; the folder is made when somebody asks for it.

    Raises:
        Refused: ``blob_missing``.
    """
    blobs.require_blobs(files)
    return Artifact.objects.create(
        project_id=project_id,
        kind=kind,
        path=_relative(uuid7()),
        files=files,
        bytes=sum(entry["bytes"] for entry in files),
    )


def uncommit_folder(*, kind: str, name: UUID, source: Path) -> None:
    """Undo the rename of :func:`commit_folder` when no row came to own the folder."""
    target = target_of(kind, name)
    if (
        target.exists()
        and not source.exists()
        and not Artifact.objects.filter(kind=kind, path=_relative(name)).exists()
    ):
        storage.move(target, source)


def delete_artifact(artifact: Artifact) -> None:
    """Delete the row now and the files once that is committed."""
    folder = artifact.local_path
    artifact.delete()
    transaction.on_commit(lambda: storage.remove(folder))


# Files that are given out by the app that knows whether they may be.
GUARDED = frozenset({Artifact.Kind.PATCH_EXPORT})


def refuse_guarded(artifact: Artifact) -> None:
    """Keep the plain download from going around a gate.

    Raises:
        Refused: ``guarded_files``.
    """
    if artifact.kind in GUARDED:
        raise Refused(
            "guarded_files",
            "These files are given out with their certificate.",
            "Download them from their export.",
            status=409,
        )


def note_download(actor: Any, artifact: Artifact, name: str, range_header: str = "") -> None:
    """Write down who takes weights away; once per download, not for every continuation of it."""
    continued = range_header and not range_header.startswith("bytes=0-")
    if artifact.kind in WEIGHTS and not continued and (name == "zip" or artifact.file(name) is not None):
        audit.record(
            actor=actor,
            action="artifact.downloaded",
            target=artifact,
            project_id=artifact.project_id,
            data={"file": name},
        )


def send_file(
    artifact: Artifact, name: str, *, range_header: str = "", inline_report: bool = False
) -> HttpResponseBase:
    """A response with the file or the asked range of it.

    Raises:
        NotVisible: the artifact has no such file, or it is gone from the disk.
    """
    entry = artifact.file(name)
    if entry is None:
        raise NotVisible("This artifact has no such file")
    if not inline_report and not artifact.local_path.is_dir():
        address = blob_store().url(entry["sha256"], PurePosixPath(name).name)
        if address is not None:
            return HttpResponseRedirect(address)
    path = artifact.checkout() / name
    if not path.is_file():
        raise NotVisible("This artifact has no such file")
    size = path.stat().st_size
    try:
        wanted = storage.parse_range(range_header, size)
    except ValueError:
        refusal = HttpResponse(status=416)
        refusal["Content-Range"] = f"bytes */{size}"
        return refusal
    start, stop = wanted if wanted is not None else (0, size - 1)
    response = StreamingHttpResponse(
        storage.read_chunks(path, start, stop - start + 1), status=200 if wanted is None else 206
    )
    if wanted is not None:
        response["Content-Range"] = f"bytes {start}-{stop}/{size}"
    response["Content-Length"] = str(stop - start + 1)
    response["Accept-Ranges"] = "bytes"
    response["ETag"] = f'"{entry["sha256"][:32]}"'
    response["X-Content-Type-Options"] = "nosniff"
    if inline_report:
        response["Content-Type"] = "text/html; charset=utf-8"
        response["Content-Security-Policy"] = REPORT_POLICY
        response["X-Frame-Options"] = "SAMEORIGIN"
    else:
        response["Content-Type"] = _TYPES.get(path.suffix, "application/octet-stream")
        disposition = content_disposition_header(as_attachment=True, filename=path.name)
        response["Content-Disposition"] = disposition or "attachment"
    return response
