"""The backend of a CPU: compiled for float32; what it has no loop for, it leaves to plain torch."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from microscope.sae.backends.base import MANY, Backend, LatentSums, Pairs, Winners
from microscope.sae.backends.cpu import pairs, search
from microscope.sae.backends.cpu.latents import ByLatent
from microscope.sae.backends.cpu.product import Bfloat16Product, product
from microscope.sae.backends.cpu.rounding import rounded_rows
from microscope.sae.backends.error_bound import HALF_ULP, ErrorBound


class CpuBackend(Backend):
    piecewise_gradients: ClassVar[bool] = True

    def top_k(self, pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if pre.dtype == torch.float32 and len(pre) >= MANY and not pre.requires_grad:
            best = search.best_of_matrix(pre.contiguous(), k)
            if best is not None:
                return best
        return super().top_k(pre, k)

    @torch.no_grad()
    def winners_of_rows(
        self, centred: Tensor, weight: Tensor, bias: Tensor, k: int, *, bfloat16: bool
    ) -> tuple[Tensor, Tensor]:
        if centred.dtype != torch.float32:
            return super().winners_of_rows(centred, weight, bias, k, bfloat16=bfloat16)
        best = None
        if bfloat16:
            best = search.best_of_rounded_rows(
                centred, weight, bias, k, *_rough_product(weight, bias, len(centred))
            )
        if best is None:
            best = search.best_of_rows(centred, weight, bias, k)
        if best is None:  # numbers that are not finite
            values, indices = product(centred, weight, bias).topk(k, dim=1, sorted=False)
            return values, indices
        return best

    @torch.no_grad()
    def winners_of_batch(
        self, centred: Tensor, weight: Tensor, bias: Tensor, budget: int, *, bfloat16: bool
    ) -> Pairs:
        found = None
        if centred.dtype == torch.float32:
            search_in = _best_of_rounded if bfloat16 else _best
            found = search_in(centred, weight, bias, budget)
        if found is None:  # numbers that are not finite
            return super().winners_of_batch(centred, weight, bias, budget, bfloat16=False)
        return found

    def dots(self, x: Tensor, winners: Winners, weight: Tensor) -> Tensor:
        return pairs.dots(x, weight, winners.row, winners.latent)

    def fit(
        self, active: Tensor, winners: Winners, weight: Tensor, base: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        return pairs.fit(active, winners.latent, winners.offsets, weight, base, target)

    def sums(self, winners: Winners, latents: int) -> LatentSums:
        return ByLatent(winners, latents)


def _rough_product(weight: Tensor, bias: Tensor, rows: int) -> tuple[Bfloat16Product, ErrorBound]:
    """The product of so many rows in bfloat16, and how far it may be off."""
    rounded_weight = rounded_rows(weight)
    return Bfloat16Product(rounded_weight.values, bias, rows), ErrorBound(rounded_weight, bias)


def _best(centred: Tensor, weight: Tensor, bias: Tensor, budget: int) -> Pairs | None:
    """Entries among which are the ``budget`` largest of the product; None if it is not finite."""
    pre = product(centred, weight, bias)
    maxima = search.block_maxima(pre, -(-budget // len(pre)))
    if maxima is None:
        return None
    cut = _kth_largest(maxima.reshape(-1), budget)
    return _tensors(search.reaching(pre, np.full(len(pre), cut, np.float32)))


def _best_of_rounded(centred: Tensor, weight: Tensor, bias: Tensor, budget: int) -> Pairs | None:
    """As :func:`_best`, looked for in a bfloat16 product and decided in float32.

    The best by the rounded value are computed first: the smallest of them bounds from below what wins, and
    of the others only those are computed whose error bound reaches up to there.
    """
    rough_product, bound = _rough_product(weight, bias, len(centred))
    x = rounded_rows(centred)
    pre = rough_product(x.values)
    lost, norm = bound.of_rows(x)
    maxima, per_row = search.block_maxima(pre, -(-budget // len(pre))), bound.at_most(lost, norm)
    if maxima is None or not bool(per_row.isfinite().all()):
        return None
    cut, slack = _kth_largest(maxima.reshape(-1), budget), (per_row + per_row.max()).numpy()
    lower = cut - HALF_ULP * abs(cut) - slack
    candidates = search.reaching(pre, lower - HALF_ULP * np.abs(lower))
    likely = candidates.value >= _kth_largest(candidates.value, budget)
    first, others = _tensors(candidates.where(likely)), _tensors(candidates.where(~likely))

    def exact(found: Pairs) -> Pairs:
        value = pairs.dots(centred, weight, found.row, found.latent) + bias[found.latent]
        return found._replace(value=value)

    first = exact(first)
    reach = others.value + bound.of_pairs(lost[others.row], norm[others.row], others.latent, others.value)
    others = exact(Pairs(*(column[reach >= first.value.min()] for column in others)))
    order = torch.cat((first.row, others.row)).argsort(stable=True)
    return Pairs(*(torch.cat(columns)[order] for columns in zip(first, others, strict=True)))


def _kth_largest(values: np.ndarray, k: int) -> float:
    rank = len(values) - k
    return float(np.partition(values, rank)[rank])


def _tensors(found: search.Entries) -> Pairs:
    return Pairs(*(torch.from_numpy(column) for column in found))
