"""The update of Adam as a loop over some rows while they are in the processor's cache."""

from __future__ import annotations

import numpy as np

from microscope.sae.backends.cpu.compiled import compiled


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
