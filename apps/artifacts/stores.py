"""Where blobs are kept: hard links beside the artifacts by default, any storage of Django (S3) by setting.

The engine reads local folders, and it is given folders. With the local store a folder of an artifact and
its blobs are the same files under two names, so contents that occur twice are kept once and nothing is ever
copied. With a remote store the folder is a copy on this machine, fetched when somebody asks for it.
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files import File
from django.core.files.storage import Storage, storages

from apps.core.errors import NotVisible
from apps.core.ids import uuid7

CHUNK = 1 << 20


def key_of(digest: str) -> str:
    """The name of a blob in a store."""
    return f"{digest[:2]}/{digest}"


class BlobStore(ABC):
    """Contents by their SHA-256."""

    local: bool

    @abstractmethod
    def put(self, path: Path, digest: str) -> bool:
        """Keep the content of a file; False when it cannot be shared and stays where it is."""

    @abstractmethod
    def fetch(self, digest: str, path: Path) -> None:
        """Make a file with the content.

        Raises:
            NotVisible: the content is gone.
        """

    @abstractmethod
    def exists(self, digest: str) -> bool:
        """Whether the content is there."""

    @abstractmethod
    def delete(self, digest: str) -> None:
        """Forget the content; folders that show it keep theirs."""

    @abstractmethod
    def digests(self) -> Iterator[str]:
        """Everything that is there."""

    def url(self, digest: str, filename: str) -> str | None:
        """An address at which a browser may fetch the content for some minutes, if the store has such."""
        return None


class LinkStore(BlobStore):
    """Hard links in ``blobs`` of the artifact folder."""

    local = True

    @property
    def root(self) -> Path:
        """The folder; read from the settings each time."""
        return Path(settings.WORKBENCH_ARTIFACT_DIR) / "blobs"

    def _path(self, digest: str) -> Path:
        return self.root / key_of(digest)

    def put(self, path: Path, digest: str) -> bool:
        """Link it, or make the file a link to what is there already. Another file system is left alone."""
        target = self._path(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Two names of one content: a write to one would change the other.
            path.chmod(0o444)
            os.link(path, target)
        except FileExistsError:
            if not target.samefile(path):
                draft = path.with_name(f".{path.name[:60]}.{uuid7().hex}")
                os.link(target, draft)
                draft.replace(path)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            return False
        return True

    def fetch(self, digest: str, path: Path) -> None:
        """Link it; across file systems, copy."""
        source = self._path(digest)
        try:
            os.link(source, path)
        except FileNotFoundError as error:
            raise NotVisible("A file of this artifact is gone from the disk") from error
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK):
                raise
            with source.open("rb") as stream:
                _write(stream, path, digest)

    def exists(self, digest: str) -> bool:
        """Whether the link is there."""
        return self._path(digest).is_file()

    def delete(self, digest: str) -> None:
        """Remove the link."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> Iterator[str]:
        """Names of the links."""
        for folder in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            yield from (entry.name for entry in sorted(folder.iterdir()) if len(entry.name) == 64)


class RemoteStore(BlobStore):
    """A storage of Django: S3 and its relatives through django-storages."""

    local = False

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def put(self, path: Path, digest: str) -> bool:
        """Upload it in pieces, unless it is there."""
        if not self._storage.exists(key_of(digest)):
            with path.open("rb") as stream:
                self._storage.save(key_of(digest), File(stream))
        return True

    def fetch(self, digest: str, path: Path) -> None:
        """Download it and compare its hash."""
        try:
            with self._storage.open(key_of(digest), "rb") as stream:
                _write(stream, path, digest)
        except FileNotFoundError as error:
            raise NotVisible("A file of this artifact is gone from the storage") from error

    def exists(self, digest: str) -> bool:
        """Ask the storage."""
        return self._storage.exists(key_of(digest))

    def delete(self, digest: str) -> None:
        """Delete the object."""
        self._storage.delete(key_of(digest))

    def digests(self) -> Iterator[str]:
        """List the storage."""
        for prefix in sorted(self._storage.listdir("")[0]):
            yield from (name for name in self._storage.listdir(prefix)[1] if len(name) == 64)

    def url(self, digest: str, filename: str) -> str | None:
        """A signed address of the object."""
        storage: Any = self._storage
        disposition = f'attachment; filename="{filename.replace(chr(34), "")}"'
        return str(storage.url(key_of(digest), parameters={"ResponseContentDisposition": disposition}))


def _write(stream: Any, path: Path, digest: str) -> None:
    """Copy a stream to a file in pieces, and check what arrived."""
    seen = hashlib.sha256()
    with path.open("wb") as target:
        while chunk := stream.read(CHUNK):
            seen.update(chunk)
            target.write(chunk)
    if seen.hexdigest() != digest:
        path.unlink()
        raise NotVisible("A file of this artifact is damaged in the storage")


def blob_store() -> BlobStore:
    """The store of the settings."""
    if "artifacts" in settings.STORAGES:
        return RemoteStore(storages["artifacts"])
    return LinkStore()
