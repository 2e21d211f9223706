"""Sparse activations of a whole recording, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from microscope.activations import Chunk, Recording, SiteRecord
from microscope.sae import SparseAutoencoder

_SPLITS = ("train", "held_out")


class Firings(NamedTuple):
    """Every activation above zero in one chunk, sorted by feature, then window, then row.

    ``feature``, ``window`` (number within the recording), ``row`` (within ``chunk``) and ``value`` are
    equally long.
    """

    chunk: Chunk
    first_window: int
    feature: np.ndarray
    window: np.ndarray
    row: np.ndarray
    value: np.ndarray


class CodeReader:
    """Encodes a recording as often as asked, remembering the sparse codes while they fit the memory given.

    Tokens outside the SAE's token filter count as silent. ``features`` restricts what is returned.
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
        self._features, self._memory = features, memory_bytes
        self._limits = self._split_limits(max_tokens)
        self._remembered: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._complete = self._overflowed = False

    @property
    def tokens(self) -> int:
        """Upper bound of the tokens read."""
        return sum(self._limits.values())

    def __iter__(self) -> Iterator[Firings]:
        first_window = used = number = 0
        for split in _SPLITS:
            if not self._limits[split]:
                continue
            for chunk in self._recording.chunks(split, self._site, max_rows=self._limits[split]):  # type: ignore[arg-type]
                if self._complete:
                    feature, row, value = self._remembered[number]
                else:
                    feature, row, value = self._encode(chunk)
                    used += feature.nbytes + row.nbytes + value.nbytes
                    self._remember(feature, row, value, used)
                window = first_window + np.searchsorted(chunk.starts, row, side="right") - 1
                yield Firings(chunk, first_window, feature, window, row, value)
                first_window += len(chunk.starts)
                number += 1
        self._complete = not self._overflowed

    def _remember(self, feature: np.ndarray, row: np.ndarray, value: np.ndarray, used: int) -> None:
        if used > self._memory:
            self._overflowed = True
            self._remembered.clear()
        if not self._overflowed:
            self._remembered.append((feature, row, value))

    @torch.no_grad()
    def _encode(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = torch.from_numpy(chunk.values).to(self._sae.W_enc.device).float()
        self._sae.check_width(x)
        codes = self._sae.encode(x)
        values, indices = codes.values.cpu().numpy(), codes.indices.cpu().numpy()
        keep = values > 0
        if self._sae.config.token_filter.max_norm is not None:
            keep &= self._recording.keep_mask(self._site, chunk.flags, chunk.norm)[:, None]
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
