"""Sparse activations of a whole recording, chunk by chunk."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from microscope.activations import Chunk, Recording, SiteRecord
from microscope.activations.token_filters import kept_rows, settle_on_recording
from microscope.sae import SparseAutoencoder

_SPLITS = ("train", "held_out")

_Code = tuple[np.ndarray, np.ndarray, np.ndarray]  # feature, row in its chunk, value


class Firings(NamedTuple):
    """Every activation above zero in one chunk, sorted by feature, then window, then row.

    ``feature``, ``window`` (number within the recording), ``row`` (within ``chunk``) and ``value`` are
    equally long. ``counted`` is the number of the chunk's tokens that the token filter keeps.
    """

    chunk: Chunk
    first_window: int
    counted: int
    feature: np.ndarray
    window: np.ndarray
    row: np.ndarray
    value: np.ndarray


class _Codes:
    """Sparse codes of chunks one after the other, in memory taken from the system once and as a whole.

    Small arrays among those that come and go would leave holes in the heap, which then grows with the text.
    """

    def __init__(self, memory_bytes: int) -> None:
        capacity = memory_bytes // 12
        memory = mmap.mmap(-1, max(1, 12 * capacity))
        kinds = (np.int32, np.int32, np.float32)
        self._columns = [np.frombuffer(memory, k, capacity, 4 * capacity * i) for i, k in enumerate(kinds)]
        self._ends = [0]

    def add(self, codes: _Code) -> bool:
        """Append a chunk's codes if they fit."""
        first = self._ends[-1]
        last = first + len(codes[0])
        if last > len(self._columns[0]):
            return False
        for column, values in zip(self._columns, codes, strict=True):
            column[first:last] = values
        self._ends.append(last)
        return True

    def chunk(self, number: int) -> _Code:
        feature, row, value = (c[self._ends[number] : self._ends[number + 1]] for c in self._columns)
        return feature, row, value


class CodeReader:
    """Encodes a recording each time it is iterated, and keeps the sparse codes while they fit the memory given.

    Tokens outside the SAE's token filter are left out; an SAE without one receives that of the recording.
    ``features`` restricts what is returned.
    """

    def __init__(
        self,
        sae: SparseAutoencoder,
        recording: Recording,
        site: SiteRecord,
        *,
        max_tokens: int | None,
        memory_bytes: int,
        features: np.ndarray | None = None,
    ) -> None:
        self._sae, self._recording, self._site = sae, recording, site
        self._filter = settle_on_recording(sae, recording)
        self._features = features
        self._limits = self._split_limits(max_tokens)
        self._memory_bytes = memory_bytes
        self._remembered: _Codes | None = None
        self._complete = False

    @property
    def tokens(self) -> int:
        """Upper bound of the tokens read."""
        return sum(self._limits.values())

    def __iter__(self) -> Iterator[Firings]:
        first_window = number = 0
        remembered = self._remembered if self._complete else _Codes(self._memory_bytes)
        for split in _SPLITS:
            if not self._limits[split]:
                continue
            for chunk in self._recording.chunks(split, self._site, max_rows=self._limits[split]):  # type: ignore[arg-type]
                kept = kept_rows(self._filter, chunk.flags, chunk.norm)
                if self._complete and remembered is not None:
                    codes = remembered.chunk(number)
                else:
                    codes = self._encode(chunk, kept)
                    if remembered is not None and not remembered.add(codes):
                        remembered = None
                feature, row, value = codes
                window = first_window + np.searchsorted(chunk.starts, row, side="right") - 1
                yield Firings(chunk, first_window, int(kept.sum()), feature, window, row, value)
                first_window += len(chunk.starts)
                number += 1
        self._remembered, self._complete = remembered, True

    @torch.no_grad()
    def _encode(self, chunk: Chunk, kept: np.ndarray) -> _Code:
        x = torch.from_numpy(chunk.values).to(self._sae.W_enc.device).float()
        self._sae.check_width(x)
        codes = self._sae.encode(x)
        values, indices = codes.values.cpu().numpy(), codes.indices.cpu().numpy()
        keep = (values > 0) & kept[:, None]
        if self._features is not None:
            keep &= np.isin(indices, self._features)
        row = np.nonzero(keep)[0].astype(np.int32)
        feature, value = indices[keep].astype(np.int32), values[keep]
        order = np.argsort(feature, kind="stable")  # rows are ascending already, and windows with them
        return feature[order], row[order], value[order]

    def _split_limits(self, max_tokens: int | None) -> dict[str, int]:
        left = (
            max_tokens
            if max_tokens is not None
            else sum(self._recording.rows(s) for s in ("train", "held_out"))
        )
        limits = {}
        for split in _SPLITS:
            limits[split] = min(left, self._recording.rows(split))  # type: ignore[arg-type]
            left -= limits[split]
        return limits
