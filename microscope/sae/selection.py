"""Which latents win: exact top-k, per row or over a batch.

The product that all of this looks at may be computed in bfloat16. Rounding moves an entry by a bounded
amount, so the entries that can possibly win are known; float32 then decides among those. The winners
are those of a float32 product, up to float32's own rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.cpu import search
from microscope.sae.doubt import HALF_ULP, Doubt, rounded
from microscope.sae.kernels import Winners, gather_dot
from microscope.sae.product import Bfloat16Product, product
from microscope.sae.team import ALONE, Team

# How many times k latents are rescored where the compiled search is not used.
_WIDER = 2
# From so many rows on a compiled search is worth its first call, which takes seconds where nothing is kept yet.
MANY = 1024


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries of each row, exactly, in no particular order.

    Args:
        pre: ``[rows, latents]``.
        k: how many.

    Returns:
        Values and indices, ``[rows, k]``.
    """
    if _compiled(pre) and len(pre) >= MANY:
        best = search.best_of_matrix(pre.detach().contiguous(), k)
        if best is not None:
            return best
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
    centred = centred.detach().contiguous()
    if not bfloat16:
        best = search.best_of_rows(centred, weight, bias, k) if _compiled(centred) else None
        if best is not None:
            return best
        values, indices = product(centred, weight, bias).topk(k, dim=1, sorted=False)
        return values, indices
    rough, doubt = _rough_product(weight, bias, len(centred))
    if not _compiled(centred):
        return _rescored_wider(centred, weight, bias, k, rough, doubt)
    best = search.best_of_rounded_rows(centred, weight, bias, k, rough, doubt)
    return winners_of_rows(centred, weight, bias, k, bfloat16=False) if best is None else best


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
    centred = centred.detach().contiguous()
    rows, latents = len(centred), len(weight)
    budget = min(k * rows * team.size, rows * latents)
    if not bfloat16:
        pre = product(centred, weight, bias)
        found = _best_of_batch(pre, budget, k * team.size) if _compiled(pre) else None
        found = _all_of_batch(pre, budget) if found is None else found
    else:
        rough, doubt = _rough_product(weight, bias, rows)
        x = rounded(centred)
        pre, rounding = rough(x.values), doubt.of_rows(x)
        given = (centred, weight, bias, doubt, rounding)
        choose = _best_of_rounded_batch if _compiled(centred) else _rescored_wider_batch
        found = choose(pre, budget, k * team.size, *given)
    if found is None:  # numbers that are not finite, or winners that rounding may have hidden
        return winners_of_batch(centred, weight, bias, k, bfloat16=False, team=team)
    row, latent, value = found
    mine, lowest = _share_of_budget(value, budget, team)
    return Winners.of_pairs(row[mine], latent[mine], rows), value[mine], lowest


Found = tuple[Tensor, Tensor, Tensor]


def _share_of_budget(value: Tensor, budget: int, team: Team) -> tuple[Tensor, Tensor]:
    """Which of this process's values are among the ``budget`` largest of all, and the smallest of those."""
    best = value.topk(budget, sorted=team.size > 1)
    if team.size == 1:
        return best.indices.sort().values, best.values.min()
    everyone = team.stack(best.values).reshape(-1).topk(budget)
    mine = int((everyone.indices // budget == team.rank).sum())
    return best.indices[:mine].sort().values, everyone.values[-1]


def _rough_product(weight: Tensor, bias: Tensor, rows: int) -> tuple[Bfloat16Product, Doubt]:
    """The product of so many rows in bfloat16, and how far it may be off."""
    rounded_weight = rounded(weight.detach())
    return Bfloat16Product(rounded_weight.values, bias, rows), Doubt(rounded_weight, bias)


def _compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


# --- compiled, on a CPU -------------------------------------------------------------------------------


def _best_of_batch(pre: Tensor, budget: int, k: int) -> Found | None:
    """Pairs that may be among the ``budget`` largest of the matrix, or None if it is not finite."""
    maxima = search.block_maxima(pre, k)
    if maxima is None:
        return None
    cut = _kth_largest(maxima.reshape(-1), budget)
    return _tensors(search.reaching(pre, np.full(len(pre), cut, np.float32)))


def _best_of_rounded_batch(
    pre: Tensor,
    budget: int,
    k: int,
    centred: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubt: Doubt,
    rounding: tuple[Tensor, Tensor],
) -> Found | None:
    """As :func:`_best_of_batch` for a product in bfloat16, with float32 values.

    The best by the rounded value are computed first: the smallest of them bounds from below what wins, and
    of the others only those are computed whose doubt reaches up to there.
    """
    maxima, per_row = search.block_maxima(pre, k), doubt.at_most(*rounding)
    if maxima is None or not bool(per_row.isfinite().all()):
        return None
    cut, slack = _kth_largest(maxima.reshape(-1), budget), (per_row + per_row.max()).numpy()
    lower = cut - HALF_ULP * abs(cut) - slack
    pairs = search.reaching(pre, lower - HALF_ULP * np.abs(lower))
    likely = pairs.value >= _kth_largest(pairs.value, budget)
    first, others = _tensors(pairs.where(likely)), _tensors(pairs.where(~likely))

    def exact(row: Tensor, latent: Tensor, _rough: Tensor) -> Found:
        winners = Winners.of_pairs(row, latent, len(centred))
        return row, latent, gather_dot(centred, winners, weight) + bias[latent]

    first = exact(*first)
    row, latent, value = others
    lost, norm = rounding
    open_ = value + doubt.of_pairs(lost[row], norm[row], latent, value) >= first[2].min()
    others = exact(*(column[open_] for column in others))
    order = torch.cat((first[0], others[0])).argsort(stable=True)
    row, latent, value = (torch.cat(columns)[order] for columns in zip(first, others, strict=True))
    return row, latent, value


def _kth_largest(values: np.ndarray, k: int) -> float:
    place = len(values) - k
    return float(np.partition(values, place)[place])


def _tensors(pairs: search.Pairs) -> Found:
    row, latent, value = (torch.from_numpy(column) for column in pairs)
    return row, latent, value


# --- anywhere -----------------------------------------------------------------------------------------


def _all_of_batch(pre: Tensor, budget: int) -> Found:
    """The ``budget`` largest of a matrix, ordered by row."""
    best = pre.reshape(-1).topk(budget, sorted=False)
    place, order = best.indices.sort()
    return place // pre.shape[1], place % pre.shape[1], best.values[order]


def _rescored_wider_batch(
    pre: Tensor,
    budget: int,
    k: int,
    centred: Tensor,
    weight: Tensor,
    bias: Tensor,
    doubt: Doubt,
    rounding: tuple[Tensor, Tensor],
) -> Found | None:
    """Twice as many of a bfloat16 product as win, with float32 values; None if others could win."""
    wide = min(_WIDER * budget, pre.numel())
    row, latent, rough = _all_of_batch(pre, wide)
    value = gather_dot(centred, Winners.of_pairs(row, latent, len(pre)), weight) + bias[latent]
    lowest, outside = value.topk(budget).values[-1], rough.min().float()
    limit = outside + HALF_ULP * outside.abs() + doubt.at_most(*rounding).max()
    return (row, latent, value) if wide == pre.numel() or bool(lowest >= limit) else None


def _rescored_wider(
    centred: Tensor, weight: Tensor, bias: Tensor, k: int, rough: Bfloat16Product, doubt: Doubt
) -> tuple[Tensor, Tensor]:
    """The k winners among twice as many of a bfloat16 product; rows where others could win are done anew."""
    wide = min(_WIDER * k, len(weight))
    x = rounded(centred)
    found, indices = rough(x.values).topk(wide, dim=1, sorted=False)
    exact = gather_dot(centred, Winners.of_indices(indices), weight).view(indices.shape) + bias[indices]
    values, place = exact.topk(k, dim=1, sorted=False)
    indices = indices.gather(1, place)
    if wide < len(weight):
        outside = found.float().amin(1)
        limit = outside + HALF_ULP * outside.abs() + doubt.at_most(*doubt.of_rows(x))
        again = (~(values.amin(1) >= limit)).nonzero()[:, 0]
        if len(again):
            redone = torch.addmm(bias, centred[again], weight.T).topk(k, dim=1, sorted=False)
            values[again], indices[again] = redone.values, redone.indices
    return values, indices
