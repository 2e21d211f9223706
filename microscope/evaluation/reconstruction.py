"""How well an SAE reconstructs held-out activations; float64, streaming."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import is_out_of_memory
from microscope.sae import SparseAutoencoder


class Reconstruction(msgspec.Struct, kw_only=True, frozen=True):
    """Reconstruction quality over one set of tokens. ``n`` tokens of ``documents`` documents."""

    n: int
    documents: int
    fvu: float
    fvu_interval: tuple[float, float] | None
    nmse0: float
    per_token_fvu: float
    mse: float
    cosine: float
    norm_ratio: float
    relative_bias: float


@dataclass
class Accumulator:
    """Sums over tokens of one set, kept per document so that documents can be resampled.

    ``mean`` is μ, the per-dimension mean of this very set, ``[d]`` float64.
    """

    mean: Tensor
    n: int = 0
    squared_norm: float = 0.0
    reconstructed_norm: float = 0.0
    overlap: float = 0.0
    cosine: float = 0.0
    norm_ratio: float = 0.0
    ratio: float = 0.0
    per_document: dict[int, list[float]] = field(default_factory=dict)

    def add(self, x: Tensor, reconstruction: Tensor, doc: np.ndarray) -> None:
        """Add rows ``[rows, d]``, their reconstructions, and each row's document."""
        if not len(x):
            return
        x, y = x.double(), reconstruction.double()
        error = (x - y).square().sum(1)
        spread = (x - self.mean).square().sum(1)
        norm, y_norm, dot = x.norm(dim=1), y.norm(dim=1), (x * y).sum(1)
        self.n += len(x)
        self.squared_norm += float(norm.square().sum())
        self.reconstructed_norm += float(y_norm.square().sum())
        self.overlap += float(dot.sum())
        self.cosine += float((dot / (norm * y_norm).clamp_min(1e-30)).sum())
        self.norm_ratio += float((y_norm / norm.clamp_min(1e-30)).sum())
        self.ratio += float((error / spread.clamp_min(1e-30)).sum())
        documents, index = np.unique(doc, return_inverse=True)
        errors = np.bincount(index, error.cpu().numpy())
        spreads = np.bincount(index, spread.cpu().numpy())
        for document, e, s in zip(documents.tolist(), errors, spreads, strict=True):
            sums = self.per_document.setdefault(document, [0.0, 0.0])
            sums[0] += e
            sums[1] += s

    def result(self, *, bootstrap: int, seed: int) -> Reconstruction | None:
        """The metrics, or None when no token was added or all are alike, so that there is no variance."""
        sums = np.array(list(self.per_document.values())).reshape(-1, 2)
        error, spread = sums.sum(0).tolist()
        if not spread > 0:
            return None
        return Reconstruction(
            n=self.n,
            documents=len(sums),
            fvu=error / spread,
            fvu_interval=ratio_interval(sums[:, 0], sums[:, 1], bootstrap, seed),
            nmse0=error / self.squared_norm,
            per_token_fvu=self.ratio / self.n,
            mse=error / (self.n * len(self.mean)),
            cosine=self.cosine / self.n,
            norm_ratio=self.norm_ratio / self.n,
            relative_bias=self.reconstructed_norm / self.overlap if self.overlap else float("nan"),
        )


def ratio_interval(
    top: np.ndarray, bottom: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of Σtop/Σbottom over documents.

    None for fewer than three documents, or where too many of them leave nothing to divide by.
    """
    if resamples < 1 or len(top) < 3:
        return None
    picks = np.random.default_rng(seed).integers(0, len(top), (resamples, len(top)))
    above, below = top[picks].sum(1), bottom[picks].sum(1)
    if np.count_nonzero(below) < resamples:
        return None
    low, high = np.quantile(above / below, (0.025, 0.975))
    return float(low), float(high)


class Usage(msgspec.Struct, kw_only=True, frozen=True):
    """Which latents fire, on ``tokens`` ordinary tokens.

    ``firings`` are counts per latent; the ``density`` histogram counts latents per tenth of log10 of
    the firing rate, from −6 to 0.
    """

    l0: float
    dead_share: float
    tokens: int
    firings: list[int]
    density_edges: list[float]
    density_counts: list[int]


class UsageCounter:
    """Counts firings per latent."""

    def __init__(self, latents: int) -> None:
        self._fired = torch.zeros(latents, dtype=torch.long)
        self._tokens = 0

    def add(self, values: Tensor, indices: Tensor) -> None:
        self._fired += torch.bincount(indices[values > 0].cpu(), minlength=len(self._fired))
        self._tokens += len(values)

    def result(self) -> Usage:
        rate = self._fired.double() / max(self._tokens, 1)
        edges = np.linspace(-6, 0, 61)
        alive = np.log10(rate[rate > 0].numpy()).clip(-6, 0)
        return Usage(
            l0=float(rate.sum()),
            dead_share=float((self._fired == 0).double().mean()),
            tokens=self._tokens,
            firings=self._fired.tolist(),
            density_edges=edges.round(2).tolist(),
            density_counts=np.histogram(alive, edges)[0].tolist(),
        )


class PositionError(msgspec.Struct, kw_only=True, frozen=True):
    """FVU by position in the context: first position of each group, and the FVU there."""

    start: list[int]
    fvu: list[float]


class PositionCounter:
    """Errors and spreads of ordinary tokens by their position in the context window."""

    def __init__(self, mean: Tensor, context: int, groups: int = 16) -> None:
        self._mean, self._size = mean, max(1, -(-context // groups))
        self._sums = np.zeros((2, -(-context // self._size)))

    def add(self, x: Tensor, reconstruction: Tensor, position: np.ndarray) -> None:
        """Add rows ``[rows, d]`` and each row's position in its window."""
        group = np.minimum(position // self._size, self._sums.shape[1] - 1)
        differences = (x.double() - reconstruction.double(), x.double() - self._mean)
        for sums, difference in zip(self._sums, differences, strict=True):
            squares = difference.square().sum(1).cpu().numpy()
            sums += np.bincount(group, squares, minlength=len(sums))

    def result(self) -> PositionError:
        error, spread = self._sums
        seen = np.flatnonzero(spread > 0)
        return PositionError(start=(seen * self._size).tolist(), fvu=(error[seen] / spread[seen]).tolist())


@torch.no_grad()
def encode_rows(sae: SparseAutoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values, indices ``[rows, k]`` and reconstruction ``[rows, d_out]`` of raw rows.

    Rows that do not fit in memory together are encoded in halves.

    Raises:
        MicroscopeError: ``out_of_memory`` when not even one row fits.
    """
    try:
        codes = sae.encode(x)
        return codes.values, codes.indices, sae.decode(codes, x)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        if len(x) < 2:
            raise MicroscopeError(
                "out_of_memory",
                f"Encoding one token with {sae.config.n_latents} latents does not fit in memory on {x.device}.",
                "Use --device cpu, or a narrower SAE.",
            ) from error
    parts = [encode_rows(sae, half) for half in x.chunk(2)]
    width = max(values.shape[1] for values, _, _ in parts)
    values, indices = (
        torch.cat([F.pad(part[i], (0, width - part[i].shape[1])) for part in parts]) for i in (0, 1)
    )
    return values, indices, torch.cat([part[2] for part in parts])
