"""Recordings others wrote: a plain Parquet file, or a folder of them, becomes a store of our own once.

Activations may be lists of any kind (fixed or variable length, also a whole context per row) or binary
float16; the columns for document, position and token are used when they are there.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from microscope.activations.broken import refuse_mostly_not_finite
from microscope.activations.forward import SiteRows
from microscope.activations.manifest import (
    CorpusRecord,
    Manifest,
    ModelRecord,
    SiteRecord,
    SourceRecord,
    SplitRecord,
)
from microscope.activations.writer import SHARD_ROWS, RecordingWriter, Rows
from microscope.errors import MicroscopeError
from microscope.models.gguf_files import cache_dir
from microscope.params import Site

HELD_OUT, OUTLIER_FACTOR = 0.05, 8.0
_FLOAT16_MAX = float(np.finfo(np.float16).max)
_NAMES = {
    "doc": ("doc", "document", "doc_id", "document_id", "prompt", "prompt_id", "sequence", "sequence_id"),
    "pos": ("pos", "position", "token_index", "token_position"),
    "token": ("token", "token_id", "token_ids", "input_ids", "tokens"),
    "flags": ("flags",),
}
# Rows that count as one document when the file does not say: enough of them that some can be held out.
_BLOCK, _WANTED_BLOCKS, _SMALLEST_BLOCK = 1024, 200, 16
_BATCH_BYTES = 64 * 2**20
_LAYER = re.compile(r"(?:^|[^a-zA-Z])(?:layers?|blocks?|h|l)[._-]?(\d+)(?!\d)", re.IGNORECASE)


class _Layout(NamedTuple):
    """Which column is what, and whether a row is a whole context."""

    sites: dict[str, str]  # site name → column
    columns: dict[str, str]  # doc, pos, token, flags → column
    nested: bool


def is_foreign(path: Path) -> bool:
    """True for a Parquet file, and for a folder of Parquet files without our manifest."""
    return path.is_file() or bool(_files(path))


def converted_recording(path: Path) -> Path:
    """A store with the rows of foreign Parquet, made on first use and kept in the cache folder.

    Documents are held out by a hash of their number, rows above eight times the median norm count as
    attention sinks, both as in recordings of our own.

    Raises:
        MicroscopeError: ``bad_recording`` when the files cannot be read or hold no activations, or
            ``corpus_too_small`` when there is nothing to hold out.
    """
    files = [path] if path.is_file() else _files(path)
    target = cache_dir() / "recordings" / _identity(files)
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        _convert(path, files, work)
        try:
            work.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and its result is the same
                raise
    except (pa.ArrowException, OSError) as error:
        raise MicroscopeError(
            "bad_recording", f"'{path}' cannot be read as Parquet: {error}", "The file may be truncated."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet")) if folder.is_dir() else []


def _identity(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}:{state.st_size}:{state.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _convert(path: Path, files: Sequence[Path], folder: Path) -> None:
    first = pq.ParquetFile(files[0])
    layout = _layout(first.schema_arrow, path)
    documents = _documents(files, layout)
    held = _held_out(np.unique(documents), path)
    sample = next(_tables(files, layout, rows=1))
    widths = {name: _matrix(sample[column], path).shape[1] for name, column in layout.sites.items()}
    metadata = first.schema_arrow.metadata or {}
    manifest = Manifest(
        model=_model(metadata),
        corpus=CorpusRecord(
            description=path.name,
            documents=len(np.unique(documents)),
            sources=[SourceRecord(description=path.name, weight=1.0)],
        ),
        sites=[
            SiteRecord(site=name, column=name, norm_column=f"{name}.norm", width=width)
            for name, width in widths.items()
        ],
        context_length=1,
        outlier_factor=OUTLIER_FACTOR,
        held_out_share=HELD_OUT,
        train=SplitRecord(),
        held_out=SplitRecord(),
    )
    writer = RecordingWriter(folder, manifest)
    row_bytes = 8 * sum(widths.values())
    seen, last, longest = 0, (-1, -1), 0
    for table in _tables(files, layout, rows=max(1, _BATCH_BYTES // row_bytes)):
        rows, runs = _rows(table, layout, documents[seen:], last, path)
        seen, last = (
            seen + (table.num_rows if layout.nested else len(rows.doc)),
            (int(rows.doc[-1]), int(rows.pos[-1])),
        )
        longest = max(longest, runs)
        if not writer.has_thresholds:
            writer.set_thresholds([rows])
        is_held = np.isin(rows.doc, held)
        for split, mask in (("train", ~is_held), ("held_out", is_held)):
            if mask.any():
                writer.add(split, _picked(rows, mask))  # type: ignore[arg-type]
        if writer.pending_rows() >= min(SHARD_ROWS, _BATCH_BYTES // row_bytes):
            writer.flush(0)
    refuse_mostly_not_finite(manifest, f"'{path}'", "Make it again with a model in float32.")
    manifest.context_length = longest
    manifest.held_out.documents = len(held)
    manifest.train.documents = manifest.corpus.documents - len(held)
    manifest.corpus.fingerprint = _identity(files)
    manifest.complete = True
    writer.flush(manifest.corpus.documents)


def _layout(schema: pa.Schema, path: Path) -> _Layout:
    columns = {
        what: next(name for name in names if name in schema.names)
        for what, names in _NAMES.items()
        if any(name in schema.names for name in names)
    }
    found = {f.name: f for f in schema if f.name not in columns.values() and _depth(f.type) > 0}
    if not found:
        raise MicroscopeError(
            "bad_recording",
            f"'{path}' has no column of activations; its columns are {', '.join(schema.names)}.",
            "Activations are lists of floats or binary float16, one row per token.",
        )
    sites: dict[str, str] = {}
    for name in found:
        site = _site_name(name) or (_site_name(path.stem) if len(found) == 1 else None)
        if site is None:
            raise MicroscopeError(
                "bad_recording",
                f"The column '{name}' of '{path}' does not say which layer it is from.",
                "Name it KIND.LAYER, for example resid_post.10, or put layer10 into the file's name.",
            )
        sites[site] = name
    return _Layout(sites, columns, nested=any(_depth(f.type) == 2 for f in found.values()))


def _depth(kind: pa.DataType) -> int:
    """1 for a row of floats, 2 for a row of rows of floats, 0 for anything else."""
    if isinstance(kind, pa.ExtensionType):
        return _depth(kind.storage_type)
    if pa.types.is_fixed_size_binary(kind):
        return int(kind.byte_width % 2 == 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        if pa.types.is_floating(inner):
            return 1
        return 2 if _depth(inner) == 1 and not pa.types.is_fixed_size_binary(inner) else 0
    return 0


def _site_name(text: str) -> str | None:
    """The site a column or file name speaks of; a bare layer number means the block's output."""
    try:
        return str(Site.parse(text))
    except MicroscopeError:
        match = _LAYER.search(text)
        return None if match is None else str(Site("resid_post", int(match[1])))


def _tables(files: Sequence[Path], layout: _Layout, *, rows: int) -> Iterator[pa.RecordBatch]:
    columns = [*layout.sites.values(), *layout.columns.values()]
    for file in files:
        yield from pq.ParquetFile(file, memory_map=True).iter_batches(
            batch_size=max(1, rows // 512) if layout.nested else rows, columns=columns
        )


def _documents(files: Sequence[Path], layout: _Layout) -> np.ndarray:
    """The document of every row of the files, as small numbers."""
    total = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    column = layout.columns.get("doc")
    if column is None:
        block = 1 if layout.nested else min(_BLOCK, max(_SMALLEST_BLOCK, total // _WANTED_BLOCKS))
        return np.arange(total) // block
    names = pa.chunked_array(
        [c for file in files for c in pq.read_table(file, columns=[column])[column].chunks]
    )
    numbers = names.dictionary_encode().combine_chunks().indices
    return np.asarray(numbers.to_numpy(zero_copy_only=False), dtype=np.int64)


def _held_out(documents: np.ndarray, path: Path) -> np.ndarray:
    if len(documents) < 2:
        raise MicroscopeError(
            "corpus_too_small",
            f"'{path}' holds a single document: nothing could be held out for evaluation.",
            "Add a column 'doc' that numbers the documents.",
        )
    shares = {
        d: int.from_bytes(hashlib.sha256(str(d).encode()).digest()[:8], "big") / 2**64 for d in documents
    }
    held = [d for d, share in shares.items() if share < HELD_OUT]
    return np.array(held or [min(shares, key=lambda d: shares[d])])


def _rows(
    batch: pa.RecordBatch, layout: _Layout, documents: np.ndarray, last: tuple[int, int], path: Path
) -> tuple[Rows, int]:
    """Rows of a batch, and its longest run of consecutive positions; ``last`` is the row before it."""
    lengths = np.ones(batch.num_rows, np.int64)
    if layout.nested:
        nested = _plain(batch[next(iter(layout.sites.values()))])
        lengths = np.asarray(nested.value_lengths().to_numpy(zero_copy_only=False), dtype=np.int64)
    doc = np.repeat(documents[: batch.num_rows], lengths).astype(np.int32)
    if "pos" in layout.columns and not layout.nested:
        pos = _numbers(batch[layout.columns["pos"]], len(doc))
    else:
        changes = np.flatnonzero(np.diff(doc, prepend=doc[0] - 1))
        starts = np.repeat(changes, np.diff(np.append(changes, len(doc))))
        pos = (np.arange(len(doc)) - starts).astype(np.int32)
        if doc[0] == last[0]:
            pos[doc == doc[0]] += last[1] + 1
    sites = {}
    for name, column in layout.sites.items():
        exact = _matrix(batch[column], path)
        norm = np.linalg.norm(exact, axis=1).astype(np.float32)
        overflow = ~(np.abs(exact).max(1) <= _FLOAT16_MAX)
        if overflow.any():
            exact = np.where(overflow[:, None], 0, exact)
            norm[np.isnan(norm)] = np.inf
        sites[name] = SiteRows(exact.astype(np.float16), norm, overflow)
    token, flags = (
        _numbers(batch[layout.columns[c]], len(doc)) if c in layout.columns else np.zeros(len(doc), np.int32)
        for c in ("token", "flags")
    )
    return Rows(doc, pos, token, flags.astype(np.uint8), sites), int(pos.max()) + 1


def _plain(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _numbers(column: pa.Array, rows: int) -> np.ndarray:
    """A column of whole numbers, one per token."""
    column = _plain(column)
    while hasattr(column, "flatten") and not isinstance(column, pa.StructArray):
        column = column.flatten()
        if not pa.types.is_nested(column.type):
            break
    values = np.asarray(column.to_numpy(zero_copy_only=False))
    if len(values) != rows or not np.issubdtype(values.dtype, np.integer):
        return np.zeros(rows, np.int32)
    return values.astype(np.int32)


def _matrix(column: pa.Array, path: Path) -> np.ndarray:
    """Rows of activations as ``[rows, width]``, float32 unless stored as float16."""
    column = _plain(column)
    if pa.types.is_fixed_size_binary(column.type):
        width = column.type.byte_width // 2
        raw = np.frombuffer(column.buffers()[1], "<f2", len(column) * width, column.offset * 2 * width)
        return raw.reshape(-1, width).astype(np.float32)
    if _depth(column.type) == 2:
        column = _plain(column.flatten())
    lengths = column.type.list_size if pa.types.is_fixed_size_list(column.type) else column.value_lengths()
    width = lengths if isinstance(lengths, int) else int(lengths[0].as_py())
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(values) != len(column) * width or (not isinstance(lengths, int) and len(lengths.unique()) != 1):
        raise MicroscopeError(
            "bad_recording",
            f"The rows of activations in '{path}' are not all equally long.",
            "Every token needs the same number of values.",
        )
    return np.asarray(values, dtype=np.float32).reshape(-1, width)


def _picked(rows: Rows, mask: np.ndarray) -> Rows:
    sites = {name: SiteRows._make(c[mask] for c in site) for name, site in rows.sites.items()}
    return Rows(rows.doc[mask], rows.pos[mask], rows.token[mask], rows.flags[mask], sites)


def _model(metadata: dict[bytes, bytes]) -> ModelRecord:
    """What the file says about the model; nothing can be checked against an unknown fingerprint."""
    name = next((metadata[k].decode() for k in (b"model", b"model_name") if k in metadata), "")
    unknown: dict[str, Any] = {"n_layers": 0, "d_model": 0, "vocab_size": 0}
    return ModelRecord(
        reference=name, revision=None, fingerprint="", family="", dtype="", tokenizer_hash="", **unknown
    )
