"""``export.json``: what an export is, of what, for whom, and how it was made."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel
from microscope.params import EditPlan, ExportTarget
from microscope.params.targets import Grade
from microscope.patching.fitting import FitReport, SeenText

MANIFEST, SEEN = "export.json", "fitted/text.safetensors"


class BaseModel(msgspec.Struct, kw_only=True, frozen=True):
    """The model the patch is for: by reference, and by content."""

    reference: str
    revision: str | None
    model_type: str
    fingerprint: str
    tokenizer: str


class FileEntry(msgspec.Struct, kw_only=True, frozen=True):
    """One file, by content."""

    path: str
    bytes: int
    sha256: str


class ExportManifest(msgspec.Struct, kw_only=True, frozen=True):
    """Everything about an export but its measurements, which are its certificate's.

    ``triggers`` are prompts on which the patch is meant to act, for the certificate.
    """

    format: str = "microscope-export"
    version: int = 1
    target: ExportTarget
    title: str
    grade: Grade
    reason: str
    hint: str
    loaders: tuple[str, ...]
    plan: EditPlan
    plan_fingerprint: str
    base: BaseModel
    saes: tuple[str, ...]
    adapters: tuple[str, ...]
    dtype: str
    rank: int | None
    untied: bool
    fit: FitReport | None
    files: tuple[FileEntry, ...]
    versions: dict[str, str]
    triggers: tuple[str, ...] = ()


def base_of(loaded: LoadedModel, name: str) -> BaseModel:
    """The identity of a loaded model."""
    return BaseModel(
        reference=name,
        revision=loaded.revision,
        model_type=str(loaded.config.model_type),
        fingerprint=loaded.fingerprint,
        tokenizer=loaded.tokenizer_hash,
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that had a part."""
    names = ("interpretability-workbench", "torch", "transformers", "safetensors", "gguf", "peft")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """The files below a folder, without the manifest."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entry = FileEntry(path=path.relative_to(folder).as_posix(), bytes=path.stat().st_size, sha256=digest)
        found.append(entry)
    return tuple(found)


def write_seen(seen: SeenText, folder: Path) -> None:
    """Write which text a fit read, as hashes, so that no certificate is measured on it."""
    save_file({"runs": torch.from_numpy(seen.hashes)}, folder / SEEN)


def read_seen(folder: str | Path) -> SeenText | None:
    """Which text the fit of an export read; None when there was no fit, or an older version made it.

    Raises:
        MicroscopeError: ``bad_export``.
    """
    path = Path(folder) / SEEN
    if not path.is_file():
        return None
    try:
        return SeenText(load_file(path)["runs"].numpy())
    except (SafetensorError, KeyError) as error:
        raise MicroscopeError("bad_export", f"{SEEN} cannot be read: {error}.", "Export again.") from error


def write_manifest(manifest: ExportManifest, folder: Path) -> None:
    """Write it; the last file of an export."""
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))


def read_manifest(folder: str | Path) -> ExportManifest:
    """Read an export's manifest and check that its files are those it lists.

    Raises:
        MicroscopeError: ``no_export``, ``bad_export`` or ``export_changed``.
    """
    folder = Path(folder)
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=ExportManifest)
    except OSError as error:
        raise MicroscopeError(
            "no_export", f"There is no export at '{folder}'.", f"Its folder must hold {MANIFEST}."
        ) from error
    except msgspec.MsgspecError as error:
        raise MicroscopeError("bad_export", f"{MANIFEST} at '{folder}' cannot be read: {error}.") from error
    found = {entry.path: entry for entry in list_files(folder)}
    for entry in manifest.files:
        if found.get(entry.path) != entry:
            raise MicroscopeError(
                "export_changed",
                f"{entry.path} is not the file that was exported.",
                "Export the patch again.",
            )
    return manifest
