"""What a backend of the sparse arithmetic does: the interface, and what goes in and out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

# From so many rows on a compiled search is worth its first call, which takes seconds where nothing is kept yet.
MANY = 1024


class Winners(NamedTuple):
    """Which latents are active on which rows, as a list of (row, latent) pairs ordered by row.

    ``latent`` and ``row`` are ``[pairs]``; ``offsets`` ``[rows]`` says where each row's pairs begin.
    """

    latent: Tensor
    row: Tensor
    offsets: Tensor

    @classmethod
    def of_indices(cls, indices: Tensor) -> Winners:
        """Winners of a rectangular selection ``[rows, k]``."""
        rows, k = indices.shape
        row = torch.arange(rows, device=indices.device).repeat_interleave(k)
        offsets = torch.arange(0, rows * k, k, device=indices.device)
        return cls(indices.reshape(-1), row, offsets)

    @classmethod
    def of_pairs(cls, row: Tensor, latent: Tensor, rows: int) -> Winners:
        """Winners from pairs already ordered by row."""
        return cls(latent, row, torch.searchsorted(row, torch.arange(rows, device=row.device)))


class Pairs(NamedTuple):
    """Entries of a matrix ``[rows, latents]``, ordered by row: each tensor is ``[pairs]``."""

    row: Tensor
    latent: Tensor
    value: Tensor


class LatentSums(ABC):
    """Sums over each latent's pairs. Coefficients are ``[pairs]``, in the order of the winners."""

    @abstractmethod
    def vector(self, coefficients: Tensor) -> Tensor:
        """For each latent the sum of its coefficients, ``[latents]``."""

    @abstractmethod
    def matrix(self, coefficients: Tensor, rows: Tensor) -> Tensor:
        """For each latent the sum of ``coefficients[pair] · rows[row]``: ``[latents, d]`` from ``[rows, d]``."""

    @abstractmethod
    def add(self, coefficients: Tensor, rows: Tensor, first: int, last: int, out: Tensor) -> None:
        """Add those rows of :meth:`matrix` that belong to latents ``first`` to ``last`` to ``out``, in place."""


class Backend(ABC):
    """The arithmetic of autoencoders of which few latents win, exact up to the rounding of float32.

    A dense training step costs about ten products of size ``rows × d × latents``; only the encoder's has to
    see all latents. Everything else touches the winners. Gradients
    are recorded by :meth:`decode` alone.
    """

    # Whether gradients of the matrices are best summed some latents at a time, while those are in the cache.
    piecewise_gradients: ClassVar[bool] = False

    @abstractmethod
    def top_k(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Values and indices of the k largest entries per row, ``[rows, k]``, in no particular order."""

    @abstractmethod
    def winners_of_rows(
        self, centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool
    ) -> tuple[Tensor, Tensor]:
        """The k largest of ``centred·weightᵀ + bias`` per row.

        Args:
            centred: ``[rows, d]`` in float32 (or float64 without ``bfloat16``), contiguous.
            weight: ``[latents, d]``.
            bias: ``[latents]``.
            k: how many per row.
            bfloat16: search in bfloat16, decide in float32.

        Returns:
            Pre-activations and latents, ``[rows, k]``, in no particular order.
        """

    @abstractmethod
    def winners_of_batch(
        self, centred: Tensor, weight: Tensor, bias: Tensor, budget: int, *, bfloat16: bool
    ) -> Pairs:
        """Entries of ``centred·weightᵀ + bias`` among which are the ``budget`` largest; arguments as above."""

    @abstractmethod
    def decode(self, values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
        """``Σⱼ values[r, j] · weight[indices[r, j]]``: ``[rows, d]`` from ``[rows, k]`` and ``[latents, d]``."""

    @abstractmethod
    def decode_pairs(self, values: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        """The same for a list of pairs: values ``[pairs]`` to ``[rows, d]``."""

    @abstractmethod
    def dots(self, x: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        """``x[row]·weight[latent]`` of every pair, ``[pairs]``, from ``[rows, d]`` and ``[latents, d]``."""

    @abstractmethod
    def fit(
        self, active: Tensor, winners: Winners, weight: Tensor, base: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Reconstruct rows from their pairs, and send the error back to the pairs.

        Args:
            active: activations ``[pairs]``.
            winners: the pairs.
            weight: ``[latents, d]``.
            base: what is added to every row, ``[d]`` or ``[rows, d]``.
            target: ``[rows, d]``.

        Returns:
            ``error = Σ active·weight[latent] + base − target`` of each row, and ``error[row]·weight[latent]``
            of each pair that is active, 0 of the others.
        """

    @abstractmethod
    def sums(self, winners: Winners, latents: int) -> LatentSums:
        """Sums over the pairs of each of so many latents."""
