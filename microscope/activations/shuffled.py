"""The rows of a recording in a true random order, for training."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from microscope.activations.ahead import read_ahead
from microscope.activations.manifest import SiteRecord
from microscope.activations.reader import Recording
from microscope.errors import MicroscopeError

# Batches that wait to be asked for.
_BATCHES_AHEAD = 2


class _Block(NamedTuple):
    """Row groups that are mixed, sorted; the order of their rows; how many of them to skip."""

    groups: tuple[int, ...]
    order: np.ndarray
    skip: int


class _Locations(NamedTuple):
    """Of every row of a block its shard, and for every site its offset in there."""

    shard: np.ndarray
    offsets: list[np.ndarray]


class ShuffledRows:
    """An endless stream of training rows in a true, seeded random order with bounded memory.

    Every epoch the row groups are permuted; as many as fit the buffer are loaded together and their
    rows permuted. When everything fits, that is a uniform shuffle of the whole split, read once. Else
    the next block is read while this one is used up. Rows are copied once, from the mapped file into
    their batch: the buffer is the system's file cache, read group by group and let go block by block.
    The stream is a pure function of (recording, filter, buffer, seed), so :attr:`position`, the number
    of rows given out, is all a checkpoint needs to continue bit for bit.
    """

    def __init__(
        self,
        recording: Recording,
        site: SiteRecord,
        *,
        seed: int,
        buffer_bytes: int,
        keep_outliers: bool = False,
        target: SiteRecord | None = None,
    ) -> None:
        """With ``target`` a batch holds two sites of the same tokens, one after the other in every row."""
        self._seed = seed
        self._sites = [site] if target is None else [site, target]
        groups = [recording.row_groups("train", s, keep_outliers=keep_outliers) for s in self._sites]
        if target is not None:
            groups[0] = [
                first._replace(rows=np.intersect1d(first.rows, last.rows, assume_unique=True))
                for first, last in zip(*groups, strict=True)
            ]
        self._groups = [g for g in groups[0] if len(g.rows)]
        self.rows_per_epoch = sum(len(g.rows) for g in self._groups)
        if not self.rows_per_epoch:
            raise MicroscopeError(
                "no_training_rows",
                "No training token passes the token filter.",
                "Record more text, or train with --keep-outliers.",
            )
        self._columns = [recording.mapped("train", s) for s in self._sites]
        self._width = sum(s.width for s in self._sites)
        self._rows_per_block = max(1, buffer_bytes // (2 * self._width))
        self.position = 0

    def batches(self, size: int, *, start: int = 0) -> Iterator[Tensor]:
        """Batches ``[size, width]`` of float16 rows, from the ``start``-th row of the stream on.

        A thread prepares them while the last one is in use.
        """
        self.position = start
        for batch in read_ahead(self._gathered(size, start), _BATCHES_AHEAD):
            self.position += size
            yield torch.from_numpy(batch)

    # --- which rows, in which order -------------------------------------------------------------------

    def _schedule(self, start: int) -> Iterator[_Block]:
        epoch, skip = divmod(start, self.rows_per_epoch)
        while True:
            order = np.random.default_rng((self._seed, epoch, 0)).permutation(len(self._groups))
            for number, groups in enumerate(self._blocks(order)):
                rows = self._count(groups)
                if skip >= rows:
                    skip -= rows
                    continue
                picks = np.random.default_rng((self._seed, epoch, 1, number)).permutation(rows)
                # Sorted, so that a split that fits the buffer is the same block in every epoch.
                yield _Block(tuple(sorted(groups)), picks, skip)
                skip = 0
            epoch += 1

    def _blocks(self, order: Iterable[int]) -> Iterator[list[int]]:
        block: list[int] = []
        rows = 0
        for group in order:
            count = len(self._groups[group].rows)
            if block and rows + count > self._rows_per_block:
                yield block
                block, rows = [], 0
            block.append(int(group))
            rows += count
        yield block

    def _count(self, groups: Iterable[int]) -> int:
        return sum(len(self._groups[g].rows) for g in groups)

    # --- where they are on disk -----------------------------------------------------------------------

    def _gathered(self, size: int, start: int) -> Iterator[np.ndarray]:
        """Batches of the stream, ``[size, width]``."""
        batch, filled = np.empty((size, self._width), "<f2"), 0
        loaded: set[int] = set()
        for block, following in itertools.pairwise(self._schedule(start)):
            self._load(g for g in block.groups if g not in loaded)
            locations = self._locations(block.groups)
            coming = [g for g in following.groups if g not in block.groups]
            loaded = set(following.groups)
            done = block.skip
            while done < len(block.order):
                some = block.order[done : done + size - filled]
                self._pick(locations, some, batch[filled : filled + len(some)])
                done, filled = done + len(some), filled + len(some)
                if filled == size:
                    yield batch
                    batch, filled = np.empty((size, self._width), "<f2"), 0
                # at the pace at which this block is used up, so that there is no pause before the next
                left = len(coming) * (len(block.order) - done) // len(block.order)
                self._load(coming[left:])
                del coming[left:]
            for group in (self._groups[g] for g in block.groups if g not in loaded):
                for column in self._columns:
                    column[group.shard].release(group.group)

    def _load(self, groups: Iterable[int]) -> None:
        """Read groups as a whole: their rows, picked one by one from a disk, would take far longer."""
        for group in (self._groups[g] for g in groups):
            for column in self._columns:
                column[group.shard].load(group.group)

    def _locations(self, groups: Iterable[int]) -> _Locations:
        picked = [self._groups[g] for g in groups]
        return _Locations(
            np.concatenate([np.full(len(g.rows), g.shard, np.int16) for g in picked]),
            [np.concatenate([c[g.shard].offsets(g.group)[g.rows] for g in picked]) for c in self._columns],
        )

    def _pick(self, locations: _Locations, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy rows of a block into ``out`` ``[rows, width]``, all sites side by side."""
        shards = locations.shard[rows]
        by_shard = np.argsort(shards, kind="stable")  # a radix sort, for so small numbers
        parts = np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1)
        first = 0
        for site, column, offsets in zip(self._sites, self._columns, locations.offsets, strict=True):
            target = np.ndarray((len(out),), f"V{2 * site.width}", out, 2 * first, (2 * self._width,))
            for part in parts:
                target[part] = column[shards[part[0]]].values[offsets[rows[part]]]
            first += site.width
