"""Blobs: what is in the store, what manifests refer to, and folders made of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from django.db.models import Sum

from apps.artifacts import storage
from apps.artifacts.models import Artifact, Blob
from apps.artifacts.stores import blob_store
from apps.core import clock
from apps.core.errors import Refused
from apps.core.hosts import file_elsewhere, this_host
from apps.core.ids import uuid7


def keep(folder: Path, files: Iterable[dict[str, Any]]) -> None:
    """Put every file of a folder into the store. May be repeated; contents that are there are shared."""
    store = blob_store()
    for entry in files:
        digest = entry["sha256"]
        # Touched first: from here on a garbage collection leaves it alone.
        known = Blob.objects.filter(pk=digest).update(touched_at=clock.now())
        if known and not store.local and store.exists(digest):
            continue
        if store.put(folder / entry["path"], digest) and not known:
            Blob.objects.get_or_create(
                pk=digest, defaults={"bytes": entry["bytes"], "touched_at": clock.now()}
            )


def keep_before_commit(folder: Path, files: Sequence[dict[str, Any]]) -> None:
    """With a remote store: everything is there before a manifest says so. With links there is nothing to do yet."""
    if not blob_store().local:
        keep(folder, files)


def require_blobs(files: Iterable[dict[str, Any]]) -> None:
    """Refuse a manifest over contents nobody has.

    Raises:
        Refused: ``blob_missing``.
    """
    wanted = {entry["sha256"] for entry in files}
    known = set(Blob.objects.filter(pk__in=wanted).values_list("pk", flat=True))
    if wanted - known:
        raise Refused("blob_missing", f"{len(wanted - known)} of {len(wanted)} files are not in the store.")


def materialise(artifact: Artifact) -> Path:
    """The folder of an artifact on this machine, made from blobs if it is not here.

    It is renamed into its path when it is complete, so a folder that is there is whole.

    Raises:
        NotVisible: a file is gone from the store.
        Refused: ``file_elsewhere`` when another host has it.
    """
    folder = artifact.local_path
    if folder.is_dir():
        return folder
    store = blob_store()
    missing = [entry for entry in artifact.files if store.local and not store.exists(entry["sha256"])]
    if missing and artifact.host not in ("", this_host()):
        raise file_elsewhere(
            f"{missing[0]['path']} of a stored {artifact.kind.replace('_', ' ')}",
            artifact.host,
            "Set WORKBENCH_ARTIFACT_STORE to an object store that all hosts reach, or keep the data folder on one mount.",
        )
    draft = folder.with_name(f".draft-{folder.name}-{uuid7().hex[-8:]}")
    try:
        draft.mkdir(parents=True)
        for entry in artifact.files:
            path = draft / entry["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            store.fetch(entry["sha256"], path)
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():  # somebody else was faster otherwise
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def referenced() -> set[str]:
    """The contents some manifest names."""
    found: set[str] = set()
    for files in Artifact.objects.values_list("files", flat=True).iterator(chunk_size=200):
        found.update(entry["sha256"] for entry in files)
    return found


def stored_bytes() -> int:
    """Bytes in the store, each content once."""
    return int(Blob.objects.aggregate(total=Sum("bytes"))["total"] or 0)


class Waste(dict[str, list[tuple[str, int]]]):
    """What a collection found: names and bytes, by category."""

    def note(self, category: str, name: str, size: int) -> None:
        """Add a finding."""
        self.setdefault(category, []).append((name, size))


def collect(*, older_than: timedelta, dry_run: bool) -> Waste:
    """Remove what nothing refers to: artifacts without an owner, folders without a row, blobs without a manifest.

    Artifacts without blobs (made before there were any, or by a process killed in between) are given theirs.
    Everything younger than ``older_than`` stays, because it may be about to be referred to.
    """
    waste, cutoff = Waste(), clock.now() - older_than
    _collect_artifacts(waste, cutoff, dry_run)
    _collect_folders(waste, cutoff.timestamp(), dry_run)
    if not dry_run:
        _complete_blobs()
    _collect_blobs(waste, cutoff, dry_run)
    return waste


def _owned(artifact: Artifact) -> bool:
    """Whether anything points at it."""
    return any(
        relation.related_model._base_manager.filter(**{relation.field.name: artifact}).exists()
        for relation in Artifact._meta.related_objects
        if relation.field is not None and not isinstance(relation.related_model, str)
    )


def _collect_artifacts(waste: Waste, cutoff: Any, dry_run: bool) -> None:
    for artifact in Artifact.objects.filter(created_at__lt=cutoff).iterator(chunk_size=200):
        if not _owned(artifact):
            waste.note("artifacts", str(artifact), artifact.bytes)
            if not dry_run:
                folder = artifact.local_path
                artifact.delete()
                storage.remove(folder)


def _collect_folders(waste: Waste, cutoff: float, dry_run: bool) -> None:
    for kind in Artifact.Kind.values:
        root = storage.root_of(kind)
        known = set(Artifact.objects.filter(kind=kind).values_list("path", flat=True))
        for folder in storage.folders_below(root):
            name = folder.relative_to(root).as_posix()
            # Renaming a folder into place sets its change time, whatever the age of its content.
            if name not in known and folder.stat().st_ctime < cutoff:
                waste.note("folders", f"{kind}/{name}", storage.bytes_below(folder))
                if not dry_run:
                    storage.remove(folder)


def _complete_blobs() -> None:
    known = set(Blob.objects.values_list("pk", flat=True))
    for artifact in Artifact.objects.iterator(chunk_size=200):
        missing = [entry for entry in artifact.files if entry["sha256"] not in known]
        if missing and artifact.local_path.is_dir():
            keep(artifact.local_path, missing)


def _collect_blobs(waste: Waste, cutoff: Any, dry_run: bool) -> None:
    store, used = blob_store(), referenced()
    known = dict(Blob.objects.values_list("pk", "bytes"))
    for digest, size in known.items():
        if digest in used:
            continue
        doomed = Blob.objects.filter(pk=digest, touched_at__lt=cutoff)
        if not doomed.exists():
            continue
        waste.note("blobs", digest, size)
        # Conditional: a job that has just found it useful has touched it.
        if not dry_run and doomed.delete()[0]:
            store.delete(digest)
    for digest in store.digests():
        if digest not in known and digest not in used and not Blob.objects.filter(pk=digest).exists():
            waste.note("objects", digest, 0)
            if not dry_run:
                store.delete(digest)
