"""What is summed over each latent's pairs, and what is done with the sums."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.cpu.compiled import compiled


class ByLatent:
    """Pairs in the order of their latents.

    Args:
        row: ``[pairs]``.
        latent: ``[pairs]``.
        latents: how many there are.
    """

    def __init__(self, row: Tensor, latent: Tensor, latents: int) -> None:
        self._begins, self._order, self._row = _by_latent(row.numpy(), latent.numpy(), latents)

    def totals(self, coefficients: Tensor) -> Tensor:
        """``[latents]``: for each the sum of its pairs' coefficients ``[pairs]``."""
        return torch.from_numpy(_totals(self._begins, self._order, coefficients.numpy()))

    def add(self, coefficients: Tensor, rows: Tensor, first: int, last: int, out: np.ndarray) -> None:
        """Add ``Σ coefficients[pair]·rows[row]`` of latents ``first`` to ``last`` to ``out``, ``[last − first, d]``."""
        begins = self._begins[first : last + 1]
        _add(begins, self._order, self._row, coefficients.numpy(), rows.numpy(), out)


def adam(
    parameter: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    grad: np.ndarray,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
    unit: bool,
) -> None:
    """One step of Adam on some rows (Kingma and Ba 2014, arXiv 1412.6980), all ``[rows, d]``, in place.

    ``mean`` and ``square`` are the moments; ``step`` counts from 1. Rows of ``unit`` length stay so: the part
    of the gradient along them is dropped first, which changes ``grad``.
    """
    kind = parameter.dtype.type
    first, second = betas
    numbers = (rate / (1 - first**step), (1 - second**step) ** -0.5, first, second, eps)
    _adam(parameter, mean, square, grad, *(kind(number) for number in numbers), unit)


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
        place = free[latent[p]]
        free[latent[p]] = place + 1
        order[place] = p
        ordered_row[place] = row[p]
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


@compiled
def _adam(parameter, mean, square, grad, rate, correction, first, second, eps, unit):
    d = parameter.shape[1]
    zero, one = parameter.dtype.type(0), parameter.dtype.type(1)
    rest_of_first, rest_of_second = one - first, one - second
    for i in range(len(parameter)):
        w, m, v, g = parameter[i], mean[i], square[i], grad[i]
        if unit:
            along = zero
            for j in range(d):
                along += g[j] * w[j]
            for j in range(d):
                g[j] -= along * w[j]
        for j in range(d):
            slope = g[j]
            m_now = m[j] + rest_of_first * (slope - m[j])
            v_now = second * v[j] + rest_of_second * (slope * slope)
            m[j], v[j] = m_now, v_now
            w[j] -= rate * m_now / (np.sqrt(v_now) * correction + eps)
        if unit:
            length = zero
            for j in range(d):
                length += w[j] * w[j]
            shorten = one / np.sqrt(length)
            for j in range(d):
                w[j] *= shorten
