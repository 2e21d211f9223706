"""Read a recording: chunk by chunk in order, or row groups by number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from microscope.activations.foreign import converted_recording, is_foreign
from microscope.activations.manifest import MANIFEST, Manifest, SiteRecord, Split, read_manifest
from microscope.activations.pages import MappedColumn, MappedShard, site_values
from microscope.errors import MicroscopeError


class RowGroup(NamedTuple):
    """A run of rows that lie together, and which of them pass the token filter (indices)."""

    shard: int
    group: int
    rows: np.ndarray


class Chunk(NamedTuple):
    """Consecutive rows: token columns ``[rows]`` and activations ``[rows, width]`` in float16.

    ``starts`` are the first rows of the context windows, which are whole.
    """

    doc: np.ndarray
    pos: np.ndarray
    token: np.ndarray
    flags: np.ndarray
    norm: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    def slice(self, first: int, last: int) -> Chunk:
        """Rows ``first … last−1``, without window starts."""
        return Chunk._make((*(column[first:last] for column in self[:-1]), self.starts[:0]))

    def windows(self) -> Iterator[Chunk]:
        """The context windows one by one."""
        ends = [*self.starts[1:], len(self.doc)]
        for first, last in zip(self.starts, ends, strict=True):
            yield self.slice(int(first), int(last))


class Recording:
    """An opened recording; Parquet that others wrote is converted on first use.

    Raises:
        MicroscopeError: ``no_recording``, ``bad_recording`` (also for truncated shards) or
            ``recording_incomplete``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file() and is_foreign(self.folder):
            self.folder = converted_recording(self.folder)
        self.manifest: Manifest = read_manifest(self.folder)
        if not self.manifest.complete:
            raise MicroscopeError(
                "recording_incomplete",
                f"The recording at '{folder}' was interrupted after {self.manifest.documents_read} documents.",
                "Finish it with `microscope trace … --resume`.",
            )
        self._shards = {split: self._open_shards(split) for split in ("train", "held_out")}

    def site(self, name: str) -> SiteRecord:
        return self.manifest.site(name)

    def rows(self, split: Split) -> int:
        """Tokens in a split, before any filter."""
        return self.manifest.split(split).rows

    def keep_mask(self, site: SiteRecord, flags: np.ndarray, norm: np.ndarray) -> np.ndarray:
        """True for ordinary tokens: no special token, no attention sink, nothing that overflowed."""
        return (flags == 0) & (norm <= site.outlier_norm)

    def row_groups(self, split: Split, site: SiteRecord, *, keep_outliers: bool) -> list[RowGroup]:
        """All row groups of a split with the rows that pass the filter; reads two small columns."""
        found = []
        for shard, mapped in enumerate(self._shards[split]):
            for group in range(mapped.file.num_row_groups):
                table = mapped.file.read_row_group(
                    group, columns=["flags", site.norm_column], use_threads=False
                )
                flags, norm = table["flags"].to_numpy(), table[site.norm_column].to_numpy()
                mask = np.ones(len(flags), bool) if keep_outliers else self.keep_mask(site, flags, norm)
                found.append(RowGroup(shard, group, np.flatnonzero(mask)))
        return found

    def mapped(self, split: Split, site: SiteRecord) -> list[MappedColumn]:
        """The activations of a site, shard by shard, where they lie in the files.

        Raises:
            MicroscopeError: ``bad_recording`` if somebody rewrote a shard in another layout.
        """
        return [MappedColumn(shard, site.column, site.width) for shard in self._shards[split]]

    def chunks(self, split: Split, site: SiteRecord, *, max_rows: int | None = None) -> Iterator[Chunk]:
        """All rows of a split in order, about a row group at a time and whole context windows each.

        With ``max_rows`` the split is cut after the window that reaches it.
        """
        columns = ["doc", "pos", "token", "flags", site.norm_column, site.column]
        held: Chunk | None = None
        given = 0
        for shard in self._shards[split]:
            for group in range(shard.file.num_row_groups):
                table = shard.file.read_row_group(group, columns=columns, use_threads=False)
                plain = [table[name].to_numpy() for name in columns[:-1]]
                chunk = Chunk._make(
                    (*plain, site_values(table[site.column], site.width), np.empty(0, np.int64))
                )
                if held is not None:
                    chunk = Chunk._make(np.concatenate(pair) for pair in zip(held, chunk, strict=True))
                starts = self._window_starts(chunk)
                # the last window may go on in the next row group
                whole, held = chunk.slice(0, int(starts[-1])), chunk.slice(int(starts[-1]), len(chunk.doc))
                if len(whole.doc):
                    yield whole._replace(starts=starts[:-1])
                    given += len(whole.doc)
                    if max_rows is not None and given >= max_rows:
                        return
        if held is not None and len(held.doc):
            yield held._replace(starts=np.zeros(1, np.int64))

    def _window_starts(self, chunk: Chunk) -> np.ndarray:
        """First row of every context window of rows that begin with one."""
        breaks = (np.diff(chunk.doc) != 0) | (np.diff(chunk.pos) != 1)
        runs = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(chunk.doc)]))
        length = self.manifest.context_length
        return np.concatenate([np.arange(first, last, length) for first, last in itertools.pairwise(runs)])

    def _open_shards(self, split: Split) -> list[MappedShard]:
        shards = []
        for shard in self.manifest.split(split).shards:
            path = self.folder / shard.file
            try:
                mapped = MappedShard(path)
                rows = mapped.file.metadata.num_rows
            except (pa.ArrowInvalid, OSError, ValueError) as error:
                raise MicroscopeError(
                    "bad_recording",
                    f"The shard {shard.file} of '{self.folder}' cannot be read; it may be truncated or missing.",
                    "Copy the recording again or record it anew.",
                ) from error
            if rows != shard.rows:
                raise MicroscopeError(
                    "bad_recording",
                    f"The shard {shard.file} has {rows} rows, the manifest says {shard.rows}.",
                    "Record it anew.",
                )
            shards.append(mapped)
        return shards
