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
from microscope.activations.reader import Recording, RowGroup
from microscope.errors import MicroscopeError

# Batches that wait to be asked for.
_BATCHES_AHEAD = 2


class _Block(NamedTuple):
    """Row groups that are in memory together, sorted; the order of their rows; how many of them to skip."""

    groups: tuple[int, ...]
    order: np.ndarray
    skip: int


class ShuffledRows:
    """An endless stream of training rows in a true, seeded random order with bounded memory.

    Every epoch the row groups are permuted; as many as fit the buffer are loaded together and their
    rows permuted. When everything fits, that is a uniform shuffle of the whole split, read once.
    Else the rows of the next block are read into the places of those given out already, so that neither
    a second buffer is needed nor a pause between blocks. The stream is a pure function of (recording,
    filter, buffer, seed), so :attr:`position`, the number of rows given out, is all a checkpoint needs
    to continue bit for bit.
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
        self._recording, self._seed = recording, seed
        self._sites = [site] if target is None else [site, target]
        groups = [recording.row_groups("train", s, keep_outliers=keep_outliers) for s in self._sites]
        both = [
            first._replace(rows=np.intersect1d(first.rows, last.rows, assume_unique=True))
            for first, last in zip(groups[0], groups[-1], strict=True)
        ]
        self._groups = [g for g in both if len(g.rows)]
        self.rows_per_epoch = sum(len(g.rows) for g in self._groups)
        if not self.rows_per_epoch:
            raise MicroscopeError(
                "no_training_rows",
                "No training token passes the token filter.",
                "Record more text, or train with --keep-outliers.",
            )
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

    # --- where they are in memory ---------------------------------------------------------------------

    def _gathered(self, size: int, start: int) -> Iterator[np.ndarray]:
        """Batches of the stream, ``[size, width]``."""
        largest = max(len(group.rows) for group in self._groups)
        buffer = np.empty((max(min(self._rows_per_block, self.rows_per_epoch), largest), self._width), "<f2")
        batch, filled = np.empty((size, self._width), "<f2"), 0
        places: np.ndarray | None = None
        for block, following in itertools.pairwise(self._schedule(start)):
            if places is None:
                places = np.arange(len(block.order))
                self._fill(buffer, block.groups)
            order = places[block.order]
            refill = None
            if following.groups != block.groups:
                refill = _Refill(self, buffer, _unused(len(buffer), places), order, following.groups)
            done = block.skip
            while done < len(order):
                some = order[done : done + size - filled]
                np.take(buffer, some, axis=0, out=batch[filled : filled + len(some)], mode="clip")
                done, filled = done + len(some), filled + len(some)
                if filled == size:
                    yield batch
                    batch, filled = np.empty((size, self._width), "<f2"), 0
                if refill is not None:
                    refill.advance(done)
            if refill is not None:
                places = refill.places

    def _fill(self, buffer: np.ndarray, groups: Iterable[int]) -> None:
        """Read groups one after the other into the buffer."""
        first = 0
        for group in (self._groups[g] for g in groups):
            self.read(group, buffer[first : first + len(group.rows)])
            first += len(group.rows)

    def read(self, group: RowGroup, out: np.ndarray) -> None:
        """The rows of one group, all sites side by side."""
        column = 0
        for site in self._sites:
            self._recording.read_values("train", group, site, out[:, column : column + site.width])
            column += site.width

    def group(self, number: int) -> RowGroup:
        return self._groups[number]


class _Refill:
    """Reads the next block into places of the buffer as they become free.

    Row i of the next block goes to the i-th free place: the ``unused`` ones first, then those of the
    present block in the ``order`` in which its rows are given out.
    """

    def __init__(
        self,
        rows: ShuffledRows,
        buffer: np.ndarray,
        unused: np.ndarray,
        order: np.ndarray,
        groups: tuple[int, ...],
    ) -> None:
        self._rows, self._buffer, self._unused = rows, buffer, len(unused)
        self._waiting = [rows.group(g) for g in reversed(groups)]
        self._read = 0
        self.places = np.concatenate((unused, order))[: sum(len(g.rows) for g in self._waiting)]

    def advance(self, given_out: int) -> None:
        """Read the groups for which there is room after so many rows of the present block were given out."""
        while self._waiting:
            group = self._waiting[-1]
            last = self._read + len(group.rows)
            if last > self._unused + given_out:
                return
            values = np.empty((len(group.rows), self._buffer.shape[1]), self._buffer.dtype)
            self._rows.read(group, values)
            self._buffer[self.places[self._read : last]] = values
            self._read = last
            self._waiting.pop()


def _unused(capacity: int, places: np.ndarray) -> np.ndarray:
    free = np.ones(capacity, bool)
    free[places] = False
    return np.flatnonzero(free)
