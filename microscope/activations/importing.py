"""Recordings of others: every value is looked at before anything is trained or measured on it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from microscope.activations.manifest import (
    MANIFEST,
    OVERFLOW,
    STATISTICS,
    Manifest,
    SiteRecord,
    read_manifest,
)
from microscope.activations.pages import MappedColumn, MappedShard, site_values
from microscope.activations.recorder import summarise
from microscope.activations.writer import ROW_GROUP, recording_fingerprint, shard_schema
from microscope.bundles import DOCUMENT, FILES, ListedFile, Listing, check_unpacked, write_archive
from microscope.errors import MicroscopeError
from microscope.models.paths import remember_path
from microscope.outputs import check_output_folder
from microscope.params import Site
from microscope.params.bundles import BUNDLE_VERSION, RECORDING_FORMAT
from microscope.params.files import ImportRecordingParams, PackRecordingParams
from microscope.progress import SILENT, Progress
from microscope.quarantine import check_file, check_safetensors, extract_zip
from microscope.quarantine.corpora import take_over
from microscope.staging import staged

_ARTIFACT = "recording"
_MAX_MANIFEST = 16 * 2**20
# Readers hold whole row groups: ours have 8,192 rows.
_MAX_GROUP_ROWS, _MAX_GROUP_BYTES = 8 * ROW_GROUP, 2**30
_SHARD = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,120}\.parquet$")
_OF_D_MODEL = ("resid_post", "resid_mid", "attn_out", "mlp_out")


def pack_recording(params: PackRecordingParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Write a recording with the digests of its files into ``recording.zip``.

    Raises:
        MicroscopeError: ``no_recording``, ``bad_recording`` or ``recording_incomplete``.
    """
    folder = Path(params.activations)
    manifest = read_manifest(folder)
    _require_complete(manifest)
    names = _files_of(manifest)
    sizes = {name: (folder / name).stat().st_size for name in names}
    files, done = [], 0
    with progress.phase("reading", sum(sizes.values()), "bytes"):
        for name, size in sizes.items():
            files.append(ListedFile.of(folder, name))
            done += size
            progress.advance(done)
    document = {
        "format": RECORDING_FORMAT,
        "version": BUNDLE_VERSION,
        "artifacts": {_ARTIFACT: {"kind": _ARTIFACT, "files": files}},
    }
    remember_path(manifest.model.fingerprint, manifest.model.reference)
    listing = Listing(document=document, folders={_ARTIFACT: str(folder)})
    packed = write_archive(listing, Path(params.out) / "recording.zip", progress)
    return {"fingerprint": manifest.fingerprint, **packed}


def import_recording(params: ImportRecordingParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Take over a recording from a folder or an archive, if all of it is sound and of the model that is named.

    Raises:
        MicroscopeError: ``no_recording``, ``bad_recording``, ``recording_incomplete``, ``wrong_model``,
            ``recording_too_large``, ``bad_output``, or what reading archives and files of strangers raises.
    """
    out = Path(params.out)
    check_output_folder(out)
    unpacked = out.with_name(out.name + ".unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        folder = _opened(Path(params.path), unpacked, params.max_bytes, progress)
        manifest = check_recording(folder, progress)
        _require_model(manifest, params, progress)
        with staged(out, last=(MANIFEST,)) as work:
            for name in _files_of(manifest):
                take_over(folder / name, work / name)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return summarise(manifest)


def _opened(path: Path, unpacked: Path, max_bytes: int, progress: Progress) -> Path:
    """The folder with the manifest; of an archive, with what is in it unpacked."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    if len(files) == 1 and files[0].suffix.lower() == ".zip":
        unpacked.mkdir(parents=True)
        names = set(extract_zip(files[0], unpacked, max_bytes=max_bytes, progress=progress))
        if DOCUMENT in names:
            check_unpacked(unpacked, names, RECORDING_FORMAT, progress)
            return unpacked / FILES / _ARTIFACT
        files = [unpacked / name for name in sorted(names)]
    size = sum(file.stat().st_size for file in files)
    if size > max_bytes:
        raise MicroscopeError(
            "recording_too_large", f"The recording has {size} bytes; {max_bytes} are allowed."
        )
    found = [file.parent for file in files if file.name == MANIFEST]
    if len(found) != 1:
        raise MicroscopeError(
            "no_recording",
            f"There is {'no' if not found else 'more than one'} {MANIFEST} among the {len(files)} files.",
            "Give the folder that `microscope trace` has written, or the archive of an export.",
        )
    return found[0]


def check_recording(folder: Path, progress: Progress = SILENT) -> Manifest:
    """Read everything: the manifest, every shard against it, every value.

    Raises:
        MicroscopeError: ``no_recording``, ``bad_recording``, ``recording_incomplete``, or what
            :func:`~microscope.quarantine.check_file` raises.
    """
    manifest_file = folder / MANIFEST
    if manifest_file.is_file() and manifest_file.stat().st_size > _MAX_MANIFEST:
        _refuse(f"its manifest has more than {_MAX_MANIFEST // 2**20} MB")
    if manifest_file.is_file():
        check_file(manifest_file, MANIFEST)
    manifest = read_manifest(folder)
    _require_complete(manifest)
    _check_manifest(manifest)
    for name in _files_of(manifest):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            _refuse(f"{name} is missing")
        check_file(folder / name, name)
    done, splits = 0, (manifest.train, manifest.held_out)
    with progress.phase("check", sum(split.rows for split in splits), "tokens"):
        for split in splits:
            for shard in split.shards:
                for rows in _check_shard(folder / shard.file, shard.rows, manifest):
                    done += rows
                    progress.advance(done)
    _check_statistics(folder / STATISTICS, manifest.sites)
    if recording_fingerprint(folder, manifest) != manifest.fingerprint:
        _refuse("its files are not those its fingerprint was taken of")
    return manifest


def _refuse(reason: str) -> NoReturn:
    raise MicroscopeError(
        "bad_recording", f"This is no sound recording: {reason}.", "Copy it again, or record it anew."
    )


def _require_complete(manifest: Manifest) -> None:
    if not manifest.complete:
        raise MicroscopeError(
            "recording_incomplete",
            f"The recording was interrupted after {manifest.documents_read} documents.",
            "Finish it with `microscope trace … --resume`.",
        )


def _files_of(manifest: Manifest) -> list[str]:
    shards = [shard.file for split in (manifest.train, manifest.held_out) for shard in split.shards]
    return [MANIFEST, STATISTICS, *shards]


def _check_manifest(manifest: Manifest) -> None:
    """What the fields say about each other."""
    shards = _files_of(manifest)[2:]
    if bad := [name for name in shards if not _SHARD.match(name)]:
        _refuse(f"'{bad[0][:80]}' is no name of a shard")
    if len(set(shards)) < len(shards) or not shards:
        _refuse("its manifest names no shard, or one twice")
    for split in (manifest.train, manifest.held_out):
        if any(shard.rows < 1 for shard in split.shards) or split.rows != sum(s.rows for s in split.shards):
            _refuse(f"its manifest counts {split.rows} rows, and its shards have others")
    if manifest.context_length < 1 or not 0 <= manifest.held_out_share < 1 or not manifest.sites:
        _refuse("its manifest has no sites, or no sound context length or held-out share")
    columns = [name for site in manifest.sites for name in (site.column, site.norm_column)]
    if len(set(columns)) < len(columns):
        _refuse("two of its sites share a column")
    for record in manifest.sites:
        site = Site.parse(record.site)
        if site.layer >= manifest.model.n_layers:
            _refuse(f"{record.site} is beyond the {manifest.model.n_layers} blocks of its model")
        wanted = manifest.model.d_model if site.kind in _OF_D_MODEL else record.width
        if record.width != wanted or not 1 <= record.width <= 2**20:
            _refuse(f"{record.site} has the width {record.width}; d_model of its model is {wanted}")


def _check_shard(path: Path, rows: int, manifest: Manifest) -> Any:
    """Yields the rows of each row group once they were looked at."""
    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file, path.name, manifest.sites)
            mapped = MappedShard(path)
            for site in manifest.sites:  # training takes rows from where they lie
                MappedColumn(mapped, site.column, site.width)
            if file.metadata.num_rows != rows:
                _refuse(f"{path.name} has {file.metadata.num_rows} rows, the manifest says {rows}")
            for number in range(file.num_row_groups):
                group = file.metadata.row_group(number)
                if group.num_rows > _MAX_GROUP_ROWS or group.total_byte_size > _MAX_GROUP_BYTES:
                    _refuse(
                        f"a row group of {path.name} has {group.num_rows} rows and {group.total_byte_size} bytes; "
                        f"{_MAX_GROUP_ROWS} and {_MAX_GROUP_BYTES} are allowed"
                    )
                _check_values(file.read_row_group(number, use_threads=False), path.name, manifest)
                yield group.num_rows
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        _refuse(f"{path.name} cannot be read ({str(error).splitlines()[0][:200] if str(error) else error!r})")


def _check_columns(file: Any, name: str, sites: list[SiteRecord]) -> None:
    wanted, found = shard_schema(sites), file.schema_arrow
    if sorted(found.names) != sorted(wanted.names):
        _refuse(f"{name} has the columns {', '.join(found.names[:12])}")
    for field in wanted:
        there = found.field(field.name)
        if there.type != field.type or there.nullable:
            _refuse(
                f"the column {field.name} of {name} is {there.type}, and should be {field.type} without gaps"
            )


def _check_values(table: pa.Table, name: str, manifest: Manifest) -> None:
    doc, pos, token, flags = (table[column].to_numpy() for column in ("doc", "pos", "token", "flags"))
    if len(doc) == 0:
        return
    if doc.min() < 0 or pos.min() < -len(manifest.wrapping[0]) or flags.max() > 7:
        _refuse(f"{name} has documents, positions or flags that cannot be")
    if token.min() < 0 or token.max() >= manifest.model.vocab_size:
        _refuse(f"{name} has tokens outside the vocabulary of {manifest.model.vocab_size}")
    for site in manifest.sites:
        norm = table[site.norm_column].to_numpy()
        if not (norm[(flags & OVERFLOW) == 0] < np.inf).all() or not (norm >= 0).all():
            _refuse(f"{name} has norms of {site.site} that are no lengths")
        bits = site_values(table[site.column], site.width).view("<u2")
        if ((bits & 0x7C00) == 0x7C00).any():  # exponent all ones: infinite, or no number
            _refuse(f"{name} has values of {site.site} that are no numbers")


def _check_statistics(path: Path, sites: list[SiteRecord]) -> None:
    found = check_safetensors(path, path.name)
    for site in sites:
        shapes = {"mean": ("F64", (site.width,)), "squares": ("F64", (site.width,)), "count": ("I64", (1,))}
        for name, shape in shapes.items():
            if found.get(f"{site.site}.{name}") != shape:
                _refuse(f"{path.name} has no {site.site}.{name} of {shape[0]} {list(shape[1])}")
    if not all(np.isfinite(tensor).all() for tensor in load_file(path).values()):
        _refuse(f"{path.name} has statistics that are no numbers")


def _require_model(manifest: Manifest, params: ImportRecordingParams, progress: Progress) -> None:
    """Whether it is a recording of the model: by the numbers at once, by the weights for certain.

    Raises:
        MicroscopeError: ``wrong_model``, or what loading the model raises.
    """
    recorded = manifest.model
    for name, wanted, has in (
        ("d_model", params.d_model, recorded.d_model),
        ("blocks", params.n_layers, recorded.n_layers),
    ):
        if wanted is not None and wanted != has:
            raise _wrong_model(recorded.reference, f"it has {has} {name}, this model has {wanted}")
    wanted_rounding = params.dtype if params.dtype in ("int8", "nf4") else None
    if params.model is not None and recorded.quantisation != wanted_rounding:
        raise _wrong_model(
            recorded.reference,
            f"its weights were {recorded.quantisation or 'whole'}, here they are {wanted_rounding or 'whole'}",
        )
    fingerprint = params.model_fingerprint
    if not fingerprint and params.model is not None:
        from microscope.models import load_model

        progress.log(f"Loading {params.model} to compare its weights")
        loaded = load_model(
            params.model, revision=params.revision, dtype=params.dtype, arithmetic="float32", device="auto"
        )
        fingerprint = loaded.fingerprint
    if fingerprint and fingerprint != recorded.fingerprint:
        raise _wrong_model(recorded.reference, "its weights have another fingerprint")


def _wrong_model(reference: str, reason: str) -> MicroscopeError:
    return MicroscopeError(
        "wrong_model",
        f"This recording is of another model ({reference[:120]}): {reason}.",
        "Choose the model it was made of, or add that one to the project first.",
    )
