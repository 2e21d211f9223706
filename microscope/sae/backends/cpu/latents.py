"""What is summed over each latent's pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.backends.base import LatentSums, Winners
from microscope.sae.backends.cpu.compiled import compiled


class ByLatent(LatentSums):
    """Pairs in the order of their latents, counted rather than sorted."""

    def __init__(self, winners: Winners, latents: int) -> None:
        self._arrays = _by_latent(winners.row.numpy(), winners.latent.numpy(), latents)
        super().__init__(winners.latent, *(torch.from_numpy(array) for array in self._arrays))

    def vector(self, coefficients: Tensor) -> Tensor:
        begins, order, _ = self._arrays
        return torch.from_numpy(_totals(begins, order, coefficients.numpy()))

    def add(self, coefficients: Tensor, rows: Tensor, first: int, last: int, out: Tensor) -> None:
        begins, order, row = self._arrays
        _add(begins[first : last + 1], order, row, coefficients.numpy(), rows.numpy(), out.numpy())


@compiled
def _by_latent(row, latent, latents):
    begins = np.zeros(latents + 1, np.int32)
    for p in range(len(latent)):
        begins[latent[p] + 1] += 1
    for i in range(latents):
        begins[i + 1] += begins[i]
    free = begins.copy()
    order, ordered_row = np.empty(len(latent), np.int32), np.empty(len(latent), np.int32)
    for p in range(len(latent)):
        slot = free[latent[p]]
        free[latent[p]] = slot + 1
        order[slot] = p
        ordered_row[slot] = row[p]
    return begins, order, ordered_row


@compiled
def _totals(begins, order, coefficients):
    totals = np.zeros(len(begins) - 1, coefficients.dtype)
    for i in range(len(totals)):
        for p in range(begins[i], begins[i + 1]):
            totals[i] += coefficients[order[p]]
    return totals


@compiled
def _add(begins, order, row, coefficients, rows, out):
    d = rows.shape[1]
    for i in range(len(out)):
        total, end = out[i], begins[i + 1]
        fours = begins[i] + (end - begins[i]) // 4 * 4
        for p in range(begins[i], fours, 4):
            a, b, c, e = rows[row[p]], rows[row[p + 1]], rows[row[p + 2]], rows[row[p + 3]]
            ca, cb = coefficients[order[p]], coefficients[order[p + 1]]
            cc, ce = coefficients[order[p + 2]], coefficients[order[p + 3]]
            for j in range(d):
                total[j] += (ca * a[j] + cb * b[j]) + (cc * c[j] + ce * e[j])
        for p in range(fours, end):
            a, ca = rows[row[p]], coefficients[order[p]]
            for j in range(d):
                total[j] += ca * a[j]
