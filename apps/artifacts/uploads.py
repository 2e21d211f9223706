"""Resumable uploads: the file on disk is the state, so any crash at any byte costs at most one piece.

The protocol is tus 1.0 (https://tus.io/protocols/resumable-upload) with its extensions creation, checksum,
expiration and termination. A file is believed only after a job has looked at its content; until then it lies
where nothing reads it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import hashlib
import os
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import IO, Any
from uuid import UUID

from django.conf import settings
from django.db import transaction
from django.db.models import Sum

from apps.artifacts import storage
from apps.artifacts.models import Upload
from apps.core import clock
from apps.core.errors import Forbidden, Refused, unknown_reference
from apps.core.hosts import file_elsewhere, this_host
from apps.projects.quotas import require_room

CHECKSUMS = {"sha1": hashlib.sha1, "sha256": hashlib.sha256}  # sha1 is what clients of the protocol send
_READ = 1 << 20
_SPARE_BYTES = 512 * 2**20
# Letters of a path, bytes of a part (file systems allow 255, and names are lengthened on the way), parts.
_MAX_PATH, _MAX_PART, _MAX_DEPTH = 500, 200, 8


def max_bytes() -> int:
    """Bytes one person may have on the way."""
    return int(settings.WORKBENCH_UPLOAD_MAX_GB) * 2**30


def chunk_bytes() -> int:
    """Bytes of one piece."""
    return int(settings.WORKBENCH_UPLOAD_CHUNK_MB) * 2**20


def clean_path(path: str) -> str:
    """A relative path that stays in its folder on every system, as it stands.

    Raises:
        Refused: ``bad_path``.
    """
    parts = path.split("/")
    bad = (
        not path
        or len(path) > _MAX_PATH
        or len(parts) > _MAX_DEPTH
        or "\\" in path
        or any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in path)
        or any(
            not p.strip()
            or p.startswith(".")
            or p.endswith((".", " "))
            or len(p.encode(errors="replace")) > _MAX_PART
            for p in parts
        )
        or ":" in parts[0]
    )
    if bad:
        raise Refused(
            "bad_path",
            f"'{path[:120]}' is no path a file can be kept under.",
            "Use a relative path without '..', hidden names or control characters.",
            attr="path",
        )
    return unicodedata.normalize("NFC", path)


def create_upload(*, actor: Any, path: str, size: int, sha256: str = "") -> Upload:
    """Announce a file.

    Raises:
        Refused: ``bad_path``, ``upload_too_large`` (413), ``quota_storage_bytes`` (413) or ``disk_full`` (507).
    """
    path = clean_path(path)
    pending = Upload.objects.filter(created_by=actor).aggregate(total=Sum("bytes"))["total"] or 0
    if pending + size > max_bytes():
        raise Refused(
            "upload_too_large",
            f"The file has {size} bytes; {max(max_bytes() - pending, 0)} of {max_bytes()} are left for your uploads.",
            "Import or cancel what you have uploaded before.",
            status=413,
        )
    project_id = actor.token.project_id if actor.token is not None else None
    require_room("storage_bytes", project_id=project_id, user_id=actor.pk, asked=size)
    root = storage.upload_root()
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if size > free - _SPARE_BYTES:
        raise Refused(
            "disk_full",
            f"The file has {size} bytes; the server's disk has room for {max(free - _SPARE_BYTES, 0)}.",
            "Ask an administrator for space.",
            status=507,
        )
    upload = Upload.objects.create(
        created_by=actor,
        project_id=project_id,
        path=path,
        bytes=size,
        sha256=sha256.lower(),
        expires_at=_expiry(),
    )
    upload.local_path.touch()
    return upload


def _expiry() -> Any:
    return clock.now() + timedelta(seconds=settings.WORKBENCH_UPLOAD_SECONDS)


def require_own(actor: Any, upload: Upload) -> None:
    """Only the sender (or staff) continues or cancels an upload, and only before a job reads it.

    Raises:
        Forbidden: it is somebody else's.
        Refused: ``upload_in_use``.
    """
    if upload.created_by_id != actor.pk and not actor.acts_as_staff:
        raise Forbidden("This upload is somebody else's.")
    if upload.held:
        raise Refused("upload_in_use", "A job has taken this upload over.", status=409)


def chunk_too_large(size: int) -> Refused:
    """The refusal of a piece above the limit."""
    return Refused(
        "chunk_too_large",
        f"The piece has {size} bytes or more; {chunk_bytes()} is the limit.",
        "Send the file in smaller pieces.",
        status=413,
    )


def parse_checksum(header: str) -> tuple[str, bytes] | None:
    """Algorithm and digest of an ``Upload-Checksum`` header.

    Raises:
        Refused: ``bad_checksum_header`` (400).
    """
    if not header:
        return None
    name, _, encoded = header.strip().partition(" ")
    try:
        digest = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if name not in CHECKSUMS or len(digest) != CHECKSUMS[name]().digest_size:
        raise Refused(
            "bad_checksum_header",
            "The Upload-Checksum header cannot be read.",
            f"Send '<algorithm> <base64>' with one of {', '.join(CHECKSUMS)}.",
            status=400,
        )
    return name, digest


def append(
    *, actor: Any, upload: Upload, offset: int, body: IO[bytes], checksum: tuple[str, bytes] | None = None
) -> int:
    """Add a piece at the end; returns the new offset. What was acknowledged is on the disk.

    Args:
        offset: where the sender believes the end is.
        body: the piece, seekable.

    Raises:
        Refused: ``offset_conflict`` (409), ``upload_busy`` (423), ``chunk_too_large`` (413), ``upload_overflow``
            (413), ``checksum_mismatch`` (460), ``upload_damaged`` or ``disk_full`` (507).
    """
    require_own(actor, upload)
    size = body.seek(0, os.SEEK_END)
    body.seek(0)
    if size > chunk_bytes():
        raise chunk_too_large(size)
    if checksum is not None:
        _compare(body, checksum)
    with _locked(upload) as stream:
        end = stream.seek(0, os.SEEK_END)
        if end != offset:
            raise Refused(
                "offset_conflict",
                f"The piece starts at {offset}, but {end} bytes have arrived.",
                "Ask for the offset with HEAD and continue there.",
                status=409,
            )
        if offset + size > upload.bytes:
            raise Refused(
                "upload_overflow",
                f"The piece ends at {offset + size}; the file was announced with {upload.bytes} bytes.",
                status=413,
            )
        try:
            shutil.copyfileobj(body, stream, _READ)
            stream.flush()
            os.fdatasync(stream.fileno())
        except OSError as error:
            stream.truncate(offset)
            raise Refused(
                "disk_full",
                f"The piece could not be stored: {error.strerror}.",
                "Continue later from the same offset.",
                status=507,
            ) from error
        if size and offset + size == upload.bytes:
            _verify(upload, stream)
    Upload.objects.filter(pk=upload.pk).update(expires_at=_expiry())
    return offset + size


def _compare(body: IO[bytes], checksum: tuple[str, bytes]) -> None:
    name, wanted = checksum
    seen = CHECKSUMS[name]()
    while piece := body.read(_READ):
        seen.update(piece)
    body.seek(0)
    if seen.digest() != wanted:
        raise Refused("checksum_mismatch", "The piece was damaged on the way.", "Send it again.", status=460)


def _verify(upload: Upload, stream: IO[bytes]) -> None:
    """Compare the whole file with what the sender said it is; a damaged one starts again."""
    if not upload.sha256:
        return
    stream.seek(0)
    if hashlib.file_digest(stream, "sha256").hexdigest() != upload.sha256:  # type: ignore[arg-type]
        stream.truncate(0)
        raise Refused(
            "upload_damaged",
            "The file that arrived is not the one that was announced: its SHA-256 differs.",
            "Send it again from the start.",
        )


@contextlib.contextmanager
def _locked(upload: Upload) -> Iterator[IO[bytes]]:
    """The file, held by one request at a time; the kernel lets go of it when the process dies."""
    try:
        with upload.local_path.open("r+b") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(
                    "upload_busy", "Another request is writing to this upload.", "Wait a moment.", status=423
                ) from error
            yield stream
    except FileNotFoundError as error:
        raise Refused("upload_gone", "This upload has expired.", "Start again.", status=410) from error


def cancel_upload(*, actor: Any, upload: Upload) -> None:
    """Forget an upload and its bytes."""
    require_own(actor, upload)
    discard([upload])


def discard(rows: Sequence[Upload]) -> None:
    """Delete uploads, their files once that is committed."""
    files = [upload.local_path for upload in rows]
    Upload.objects.filter(pk__in=[upload.pk for upload in rows]).delete()

    def unlink() -> None:
        for file in files:
            file.unlink(missing_ok=True)

    transaction.on_commit(unlink, robust=True)


def take(*, actor: Any, ids: Sequence[UUID], project_id: UUID, used_by: UUID) -> list[Upload]:
    """Hand finished uploads to a job of a project. Call inside the transaction that submits it.

    Raises:
        Refused: ``does_not_exist``, ``upload_incomplete``, ``upload_in_use``, ``path_twice`` or
            ``quota_storage_bytes`` when the project has no room for them (413).
    """
    mine = Upload.objects.visible_to(actor).filter(pk__in=ids, created_by_id=actor.pk)
    rows = list(mine.select_for_update())
    if not ids or len(rows) != len(set(ids)):
        raise unknown_reference("uploads")
    seen: set[str] = set()
    for upload in rows:
        require_own(actor, upload)
        if not upload.is_complete():
            raise Refused(
                "upload_incomplete",
                f"{upload.path} has {upload.count_received()} of {upload.bytes} bytes.",
                "Finish the upload first.",
                status=409,
                attr="uploads",
            )
        # Names that differ by case only are one file on some machines.
        folded = upload.path.casefold()
        if folded in seen:
            raise Refused("path_twice", f"Two files are called {upload.path}.", attr="uploads")
        seen.add(folded)
    asked = sum(upload.bytes for upload in rows if upload.project_id != project_id)
    # The sender's own quota has been asked when the uploads were announced.
    require_room("storage_bytes", project_id=project_id, user_id=None, asked=asked)
    Upload.objects.filter(pk__in=[upload.pk for upload in rows]).update(
        used_by=used_by, held=True, project_id=project_id
    )
    return rows


def hold(job_id: UUID) -> None:
    """Keep what a job has read from its sender: it is done once more."""
    Upload.objects.filter(used_by=job_id).update(held=True)


def let_go(job_id: UUID) -> None:
    """Give what a job has read back to its sender, who may remove it or import it again; it goes on counting."""
    Upload.objects.filter(used_by=job_id, held=True).update(held=False, expires_at=_expiry())


def used_by(job_id: UUID) -> list[Upload]:
    """The uploads a job reads."""
    return list(Upload.objects.filter(used_by=job_id).order_by("path"))


def lay_out(job_id: UUID, folder: Any) -> list[str]:
    """Make the folder a job reads from its uploads, by links; returns the paths.

    Raises:
        Refused: ``upload_gone`` when they have expired since, ``file_elsewhere`` when another host has them.
    """
    rows = used_by(job_id)
    for upload in rows:
        if not upload.is_complete() and upload.host not in ("", this_host()):
            raise file_elsewhere(
                f"The uploaded file {upload.path}",
                upload.host,
                "Keep the data folder on one mount for all hosts, or run such jobs on that host.",
            )
    if not rows or any(not upload.is_complete() for upload in rows):
        raise Refused("upload_gone", "The uploaded files are gone.", "Upload them again.", status=410)
    shutil.rmtree(folder, ignore_errors=True)
    for upload in rows:
        target = folder / upload.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(upload.local_path, target)
        except OSError:
            shutil.copyfile(upload.local_path, target)
    Upload.objects.filter(used_by=job_id).update(expires_at=_expiry())
    return [upload.path for upload in rows]


def collect_uploads(note: Callable[[str, str, int], None], *, dry_run: bool) -> None:
    """Remove expired uploads and files of uploads that are forgotten.

    Args:
        note: told category, name and bytes of each.
    """
    for upload in Upload.objects.filter(expires_at__lt=clock.now()):
        note("uploads", f"{upload.created_by_id}/{upload.path}", upload.count_received())
        if not dry_run:
            discard([upload])
    known = {str(pk) for pk in Upload.objects.values_list("pk", flat=True)}
    root = storage.upload_root()
    for file in root.iterdir() if root.is_dir() else ():
        # An hour, because the row of a new upload is committed after its file was made.
        if file.name not in known and time.time() - file.stat().st_mtime > 3600:
            note("upload files", file.name, file.stat().st_size)
            if not dry_run:
                file.unlink(missing_ok=True)
