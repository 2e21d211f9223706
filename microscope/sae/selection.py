"""Which latents win: exact top-k, per row or over a batch.

On a CPU a row is first cut into blocks. The k-th largest block maximum is a lower bound of the k-th
largest entry and hardly below it, so one more comparison leaves a few dozen entries per row.

The product that all of this looks at may be computed in bfloat16. Rounding moves an entry by a bounded
amount, so the entries that can possibly win are known; float32 then decides among those. The winners
are those of a float32 product, up to float32's own rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from microscope.sae.doubt import HALF_ULP, Doubt
from microscope.sae.kernels import Winners, gather_dot
from microscope.sae.product import Bfloat16Product, product
from microscope.sae.team import ALONE, Team

# Sizes of a block, the best first: larger ones are cheaper, smaller ones still work for narrow rows.
_BLOCKS = (64, 32, 16)
# A product is looked at in pieces of about this many entries, while it is still in the cache.
_PIECE = 2**22
_PIECE_ROWS = 256
# How many times k latents are rescored where rows are not cut into blocks.
_WIDER = 2
# Rows with more than so many times k candidates are looked at one by one.
_WIDE = 8


class Pairs(NamedTuple):
    """Entries of a matrix, ordered by row: each array is ``[pairs]``."""

    row: np.ndarray
    latent: np.ndarray
    value: np.ndarray

    def where(self, chosen: np.ndarray) -> Pairs:
        """Some of them, by mask or place."""
        return Pairs(self.row[chosen], self.latent[chosen], self.value[chosen])


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, exactly, in no particular order.

    Args:
        pre: ``[rows, latents]``.
        k: how many.

    Returns:
        Values and indices, ``[rows, k]``.
    """
    if _in_blocks(pre.device, pre.shape[1], k):
        exact = pre.float() if pre.dtype == torch.bfloat16 else pre
        maxima = _block_maxima(exact, k)
        if _finite(maxima):
            pairs = _reaching(exact.numpy(), _kth_largest(maxima, k))
            values, indices = _best_of_rows(pairs, len(pre), k)
            return values.to(pre.dtype), indices
    values, indices = pre.topk(k, dim=1, sorted=False)
    return values, indices


def winners_of_rows(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool
) -> tuple[Tensor, Tensor]:
    """The k largest of ``centred·weightᵀ + bias`` per row.

    Args:
        centred: ``[rows, d]`` in float32 (or float64 without ``bfloat16``).
        weight: ``[latents, d]``.
        bias: ``[latents]``.
        k: how many per row.
        bfloat16: search in bfloat16, decide in float32.

    Returns:
        Pre-activations and latents, ``[rows, k]``.
    """
    if not bfloat16:
        parts = [top_k(product(part, weight, bias), k) for part in _pieces(centred, len(weight))]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    rough = Bfloat16Product(weight, bias, len(centred))
    if not _in_blocks(centred.device, len(weight), k):
        return _rescored_wider(centred, weight, bias, k, rough)
    doubt = Doubt(centred, weight, bias, rough)
    slack = 2 * doubt.per_row().numpy()
    if not np.isfinite(slack).all():
        return winners_of_rows(centred, weight, bias, k, bfloat16=False)
    found: list[Pairs] = []
    first = 0
    for part in _pieces(centred, len(weight)):
        pre = rough(part)
        cut = _lowered(_kth_largest(_block_maxima(pre, k), k), slack[first : first + len(part)])
        pairs = _reaching_rounded(pre, cut)
        found.append(pairs._replace(row=pairs.row + first))
        first += len(part)
    pairs = Pairs(*(np.concatenate(column) for column in zip(*found, strict=True)))
    likely = pairs.value >= _kth_of_rows(pairs, len(centred), k)[pairs.row]
    pairs = _rescored(pairs, likely, centred, weight, bias, doubt, by_row=True)
    return _best_of_rows(pairs, len(centred), k)


def winners_of_batch(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool, team: Team = ALONE
) -> tuple[Winners, Tensor, Tensor]:
    """The k·rows largest of ``centred·weightᵀ + bias`` over a batch that a team shares.

    Args:
        centred: this process's part of the batch, ``[rows, d]``.
        weight: ``[latents, d]``.
        bias: ``[latents]``.
        k: winners per row on average.
        bfloat16: search in bfloat16, decide in float32.
        team: the processes with the other parts.

    Returns:
        This process's winners, their pre-activations ``[pairs]``, and the smallest winning one of all.
    """
    rows, latents = len(centred), len(weight)
    budget = min(k * rows * team.size, rows * latents)
    rough = Bfloat16Product(weight, bias, rows) if bfloat16 else None
    doubt = None if rough is None else Doubt(centred, weight, bias, rough)
    pre = product(centred, weight, bias) if rough is None else rough(centred)
    pairs = None
    if _in_blocks(centred.device, latents, k * team.size):
        pairs = (
            _best_of_batch(pre, budget, k * team.size)
            if doubt is None
            else _best_of_rounded_batch(pre, budget, k * team.size, centred, weight, bias, doubt)
        )
    if pairs is not None:
        row, latent, value = (torch.from_numpy(column) for column in pairs)
    else:
        wide = min(_WIDER * budget, pre.numel()) if bfloat16 else budget
        best = pre.reshape(-1).topk(wide, sorted=False)
        place, order = best.indices.sort()
        row, latent, value = place // latents, place % latents, best.values[order]
        if doubt is not None:
            value = gather_dot(centred, Winners.of_pairs(row, latent, rows), weight) + bias[latent]
            lowest = value.topk(budget).values[-1]
            outside = best.values.min().float()
            limit = outside + HALF_ULP * outside.abs() + doubt.per_row().max()
            if wide < pre.numel() and not bool(lowest >= limit):
                return winners_of_batch(centred, weight, bias, k, bfloat16=False, team=team)
    mine, lowest = _share_of_budget(value, budget, team)
    return Winners.of_pairs(row[mine], latent[mine], rows), value[mine], lowest


def _share_of_budget(value: Tensor, budget: int, team: Team) -> tuple[Tensor, Tensor]:
    """Which of this process's values are among the ``budget`` largest of all, and the smallest of those."""
    best = value.topk(budget, sorted=team.size > 1)
    if team.size == 1:
        return best.indices.sort().values, best.values.min()
    everyone = team.stack(best.values).reshape(-1).topk(budget)
    mine = int((everyone.indices // budget == team.rank).sum())
    return best.indices[:mine].sort().values, everyone.values[-1]


# --- in blocks, on a CPU ------------------------------------------------------------------------------


def _block(latents: int, k: int) -> int | None:
    """The size of a block: it divides the row into at least 2k."""
    return next((size for size in _BLOCKS if latents % size == 0 and latents // size >= 2 * k), None)


def _in_blocks(device: torch.device, latents: int, k: int) -> bool:
    return device.type == "cpu" and _block(latents, k) is not None


def _block_maxima(pre: Tensor, k: int) -> np.ndarray:
    """``[rows, blocks]``; a block is a set of strided columns, so that lanes stay contiguous.

    Of bfloat16 these are lower bounds in float32, exact for blocks with an entry above zero: as
    integers such numbers have their own order and lie above all others.
    """
    size = _block(pre.shape[1], k)
    assert size is not None
    rounded = pre.dtype == torch.bfloat16
    blocks = (pre.view(torch.int16) if rounded else pre).view(len(pre), size, -1)
    maxima: np.ndarray = blocks.amax(1).numpy()
    return _as_float32(maxima) if rounded else maxima


def _finite(maxima: np.ndarray) -> bool:
    """False when weights have run off to infinity, which is for the caller of the caller to report."""
    return bool(np.isfinite(maxima.sum()))


def _kth_largest(maxima: np.ndarray, k: int) -> np.ndarray:
    """The k-th largest of each row, ``[rows]``."""
    place = maxima.shape[1] - k
    return np.partition(maxima, place, axis=1)[:, place]


def _reaching(pre: np.ndarray, cut: np.ndarray) -> Pairs:
    """All entries of ``[rows, latents]`` that reach their row's cut ``[rows]``."""
    places = np.flatnonzero(pre >= cut[:, None])
    row, latent = np.divmod(places, pre.shape[1])
    return Pairs(row, latent, pre.reshape(-1)[places])


def _best_of_batch(pre: Tensor, budget: int, k: int) -> Pairs | None:
    """The entries that may be among the ``budget`` largest of the matrix, or None if it is not finite."""
    maxima = _block_maxima(pre, k)
    if not _finite(maxima):
        return None
    cut = _kth_largest(maxima.reshape(1, -1), budget)
    return _reaching(pre.numpy(), np.repeat(cut, len(pre)))


def _laid_out(pairs: Pairs, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Values ``[rows, width]``, padded with −∞, and each pair's place among them."""
    counts = np.bincount(pairs.row, minlength=rows)
    width = int(counts.max())
    shift = np.arange(rows) * width - (np.cumsum(counts) - counts)
    place = np.arange(len(pairs.row)) + shift[pairs.row]
    values = np.full(rows * width, -np.inf, pairs.value.dtype)
    values[place] = pairs.value
    return values.reshape(rows, width), place


def _kth_of_rows(pairs: Pairs, rows: int, k: int) -> np.ndarray:
    """The k-th largest value of each row's pairs, of which there are at least k: ``[rows]``."""
    counts = np.bincount(pairs.row, minlength=rows)
    wide = np.flatnonzero(counts > _WIDE * k)
    if not len(wide):
        return _kth_largest(_laid_out(pairs, rows)[0], k)
    # A single row that leaves everything open would make all of them as wide.
    kth = np.empty(rows, pairs.value.dtype)
    if len(wide) < rows:
        usual = pairs.where(counts[pairs.row] <= _WIDE * k)
        kth[:] = _kth_largest(_laid_out(usual, rows)[0], k)
    ends = np.cumsum(counts)
    for row in wide:
        kth[row] = _kth_largest(pairs.value[None, ends[row] - counts[row] : ends[row]], k)[0]
    return kth


def _best_of_rows(pairs: Pairs, rows: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row's pairs, of which there are at least k."""
    best = pairs.where(pairs.value >= _kth_of_rows(pairs, rows, k)[pairs.row])
    if len(best.row) == rows * k:
        return torch.from_numpy(best.value).view(rows, k), torch.from_numpy(best.latent).view(rows, k)
    values, place = _laid_out(best, rows)  # some are equal to the k-th largest
    latents = np.zeros(values.size, np.int64)
    latents[place] = best.latent
    chosen = torch.from_numpy(values).topk(k, dim=1, sorted=False)
    return chosen.values, torch.from_numpy(latents).view(rows, -1).gather(1, chosen.indices)


def _pieces(rows: Tensor, latents: int) -> Iterator[Tensor]:
    if rows.device.type != "cpu":
        return iter((rows,))
    return iter(rows.split(max(64, min(_PIECE_ROWS, _PIECE // latents))))


# --- with bfloat16 ------------------------------------------------------------------------------------


def _reaching_rounded(pre: Tensor, cut: np.ndarray) -> Pairs:
    """All entries of a bfloat16 matrix that reach their row's cut ``[rows]`` in float32."""
    if cut.min() <= 0:
        return _reaching(pre.float().numpy(), cut)
    # half of a positive float32 is the bfloat16 just below it
    pairs = _reaching(pre.view(torch.int16).numpy(), (cut.view(np.int32) >> 16).astype(np.int16))
    return pairs._replace(value=_as_float32(pairs.value))


def _as_float32(bits: np.ndarray) -> np.ndarray:
    """The numbers that bfloat16's bits mean."""
    return (bits.astype(np.int32) << 16).view(np.float32)


def _lowered(cut: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """A cut on rounded entries that no entry misses whose exact value reaches the exact cut.

    ``slack`` is how far an entry at the cut and another can be moved against each other before they
    are rounded, ``[rows]``.
    """
    lower = cut - HALF_ULP * np.abs(cut) - slack
    return (lower - HALF_ULP * np.abs(lower)).astype(np.float32)


def _rescored(
    pairs: Pairs,
    likely: np.ndarray,
    centred: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubt: Doubt,
    *,
    by_row: bool,
) -> Pairs:
    """Pairs that can win, with their float32 values.

    The ``likely`` ones (a mask; at least as many as win) are computed first: the smallest of them bounds
    from below what wins, and of the others only those are computed whose doubt reaches up to there.
    """

    def exact(some: Pairs) -> np.ndarray:
        latent = torch.from_numpy(some.latent)
        winners = Winners.of_pairs(torch.from_numpy(some.row), latent, len(centred))
        return (gather_dot(centred, winners, weight) + bias[latent]).numpy()

    first, others = pairs.where(likely), pairs.where(~likely)
    first = first._replace(value=exact(first))
    if by_row:
        begins = np.flatnonzero(np.diff(first.row, prepend=-1))
        bound = np.minimum.reduceat(first.value, begins)[others.row]
    else:
        bound = first.value.min()
    others = others.where(others.value + doubt.of_pairs(*others) >= bound)
    others = others._replace(value=exact(others))
    order = np.argsort(np.concatenate((first.row, others.row)), kind="stable")
    return Pairs(*(np.concatenate(columns)[order] for columns in zip(first, others, strict=True)))


def _best_of_rounded_batch(
    pre: Tensor, budget: int, k: int, centred: Tensor, weight: Tensor, bias: Tensor, doubt: Doubt
) -> Pairs | None:
    """As :func:`_best_of_batch` for a product in bfloat16, with float32 values."""
    per_row = doubt.per_row().numpy()
    if not np.isfinite(per_row).all():
        return None
    kth = _kth_largest(_block_maxima(pre, k).reshape(1, -1), budget)
    pairs = _reaching_rounded(pre, _lowered(np.repeat(kth, len(pre)), per_row + per_row.max()))
    place = len(pairs.value) - budget
    likely = pairs.value >= np.partition(pairs.value, place)[place]
    return _rescored(pairs, likely, centred, weight, bias, doubt, by_row=False)


def _rescored_wider(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, rough: Bfloat16Product
) -> tuple[Tensor, Tensor]:
    """The k winners among twice as many of a bfloat16 product; rows where others could win are done anew."""
    wide = min(_WIDER * k, len(weight))
    found, indices = rough(centred).topk(wide, dim=1, sorted=False)
    exact = gather_dot(centred, Winners.of_indices(indices), weight).view(indices.shape) + bias[indices]
    values, place = exact.topk(k, dim=1, sorted=False)
    indices = indices.gather(1, place)
    if wide < len(weight):
        outside = found.float().amin(1)
        limit = outside + HALF_ULP * outside.abs() + Doubt(centred, weight, bias, rough).per_row()
        again = (~(values.amin(1) >= limit)).nonzero()[:, 0]
        if len(again):
            redone = torch.addmm(bias, centred[again], weight.T).topk(k, dim=1, sorted=False)
            values[again], indices[again] = redone.values, redone.indices
    return values, indices
