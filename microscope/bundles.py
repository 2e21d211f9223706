"""A project, or one recording, as one archive: its document, and the files of its artifacts as they are.

``bundle.json`` is the document; ``artifacts/<id>/<path>`` are the files it lists with bytes and SHA-256.
An SAE or a recording can be used from the unpacked folder by every command.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
from msgspec import Struct

from microscope.errors import MicroscopeError
from microscope.naming import named_model
from microscope.params.bundles import BUNDLE_FORMAT, BUNDLE_VERSION, PackParams, UnpackParams
from microscope.progress import SILENT, Progress
from microscope.quarantine.archives import extract_zip
from microscope.quarantine.content import read_head
from microscope.quarantine.documents import check_json
from microscope.quarantine.folders import check_file
from microscope.staging import staged

DOCUMENT, FILES = "bundle.json", "artifacts"
_READ = 1 << 20
# What says where a model was found: manifests of recordings and of analyses, configurations of SAEs.
_DESCRIPTIONS = frozenset({"manifest.json", "sae.json"})
# The same content makes the same archive.
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


class ListedFile(Struct, frozen=True):
    """A file of an artifact."""

    path: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, folder: Path, name: str) -> ListedFile:
        """A file as it is now; reads all of it."""
        path = folder / name
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return cls(name, path.stat().st_size, digest)


class ListedArtifact(Struct, frozen=True):
    """The files of one artifact; ``kind`` says what they are."""

    kind: str
    files: list[ListedFile]


class Document(Struct, frozen=True):
    """What every version of the document has; the rows are the portal's."""

    format: str
    version: int
    artifacts: dict[str, ListedArtifact]


class Listing(Struct, frozen=True):
    """What is to be packed: the document as it will stand in the archive, and where the files are."""

    document: dict[str, Any]
    folders: dict[str, str]


def pack(params: PackParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Write the archive ``project.zip``.

    Raises:
        MicroscopeError: ``bundle_changed`` when a file is not as listed.
    """
    listing = msgspec.json.decode(Path(params.listing).read_bytes(), type=Listing)
    return write_archive(listing, Path(params.out) / "project.zip", progress)


def write_archive(listing: Listing, target: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Write what is listed into one archive, which appears when it is whole.

    Raises:
        MicroscopeError: ``bundle_changed`` when a file is not as listed.
    """
    changed = _without_places(listing)
    document = msgspec.convert(listing.document, Document)
    total = sum(file.bytes for artifact in document.artifacts.values() for file in artifact.files)
    done = count = 0
    with (
        staged(target.parent, last=(target.name,)) as work,
        progress.phase("packing", total, "bytes"),
        zipfile.ZipFile(work / target.name, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
    ):
        archive.writestr(
            zipfile.ZipInfo(DOCUMENT, _LONG_AGO), msgspec.json.format(msgspec.json.encode(listing.document))
        )
        for key, artifact in document.artifacts.items():
            for file in artifact.files:
                place = f"{FILES}/{key}/{file.path}"
                if place in changed:
                    archive.writestr(_entry(place), changed[place])
                else:
                    _add(archive, Path(listing.folders[key]) / file.path, place, file)
                done, count = done + file.bytes, count + 1
                progress.advance(done)
        progress.advance(done, final=True)
    return {"files": count, "bytes": done}


def _without_places(listing: Listing) -> dict[str, bytes]:
    """Descriptions that say where a model was on this machine, by their place in the archive, saying its name instead.

    The listing's document gets their new sizes and digests.
    """
    changed = {}
    for key, artifact in listing.document["artifacts"].items():
        files = []
        for file in msgspec.convert(artifact, ListedArtifact).files:
            if PurePosixPath(file.path).name in _DESCRIPTIONS:
                data = (Path(listing.folders[key]) / file.path).read_bytes()
                if hashlib.sha256(data).hexdigest() != file.sha256:
                    raise _not_as_listed(file)
                named = named_model(data)
                if named != data:
                    changed[f"{FILES}/{key}/{file.path}"] = named
                    file = ListedFile(file.path, len(named), hashlib.sha256(named).hexdigest())
            files.append(file)
        artifact["files"] = files
    return changed


def _add(archive: zipfile.ZipFile, path: Path, place: str, file: ListedFile) -> None:
    info = _entry(place)
    info.file_size = file.bytes
    digest = hashlib.sha256()
    with path.open("rb") as source, archive.open(info, "w") as target:
        while data := source.read(_READ):
            digest.update(data)
            target.write(data)
    if digest.hexdigest() != file.sha256:
        raise _not_as_listed(file)


def _entry(place: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(place, _LONG_AGO)
    info.external_attr = 0o644 << 16
    return info


def _not_as_listed(file: ListedFile) -> MicroscopeError:
    return MicroscopeError(
        "bundle_changed",
        f"{file.path} is not as it was listed.",
        "Look at the server's disk, then try again.",
    )


def unpack(params: UnpackParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Unpack a project's archive of a stranger: names, sizes, digests and contents are checked, nothing is believed.

    Raises:
        MicroscopeError: ``bad_archive``, ``archive_too_large``, or what :func:`check_unpacked` raises.
    """
    out = Path(params.out)
    with staged(out, last=(DOCUMENT,)) as work:
        names = set(extract_zip(Path(params.path), work, max_bytes=params.max_bytes, progress=progress))
        document = check_unpacked(work, names, BUNDLE_FORMAT, progress)
    files = [file for artifact in document.artifacts.values() for file in artifact.files]
    return {"files": len(files), "bytes": sum(file.bytes for file in files)}


def check_unpacked(out: Path, names: set[str], kind: str, progress: Progress = SILENT) -> Document:
    """Compare an unpacked archive with its document, and look at every file.

    Args:
        names: what was unpacked.
        kind: the format the document must have.

    Raises:
        MicroscopeError: ``bad_bundle``, ``newer_bundle``, or what
            :func:`~microscope.quarantine.folders.check_file` raises.
    """
    document = _document(out, kind)
    listed = {
        f"{FILES}/{key}/{file.path}": file
        for key, artifact in document.artifacts.items()
        for file in artifact.files
    }
    foreign = sorted(names ^ (set(listed) | {DOCUMENT}))
    if foreign:
        raise _bad(f"'{foreign[0][:120]}' is listed and not there, or there and not listed")
    total, done = sum(file.bytes for file in listed.values()), 0
    with progress.phase("checking", total, "bytes"):
        for name, file in listed.items():
            with (out / name).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    raise _bad(f"{file.path} is damaged")
            if not _is_gguf(out / name, file.path):  # exports for other programs; nothing here opens them
                check_file(out / name, file.path)
            done += file.bytes
            progress.advance(done)
        progress.advance(done, final=True)
    return document


def _is_gguf(path: Path, name: str) -> bool:
    return name.endswith(".gguf") and read_head(path).startswith(b"GGUF")


def _document(folder: Path, kind: str) -> Document:
    path = folder / DOCUMENT
    if not path.is_file():
        raise _bad("there is no bundle.json in it")
    check_json(path, DOCUMENT)
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except msgspec.DecodeError as error:
        raise _bad(str(error)) from error
    if document.format != kind:
        raise _bad(f"it is of the kind '{document.format[:60]}'")
    if document.version > BUNDLE_VERSION:
        raise MicroscopeError(
            "newer_bundle",
            f"The bundle has version {document.version}; this program reads up to {BUNDLE_VERSION}.",
            "Upgrade this instance first.",
        )
    return document


def _bad(reason: str) -> MicroscopeError:
    return MicroscopeError("bad_bundle", f"This is no sound bundle: {reason}.", "Export it again.")
