"""What is computed for each (row, latent) pair, the pairs being ordered by row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.backends.cpu.compiled import compiled
from microscope.threads import in_pieces

_PAIRS, _ROWS = 8192, 256


def dots(x: Tensor, weight: Tensor, row: Tensor, latent: Tensor) -> Tensor:
    """``x[row]·weight[latent]`` of every pair, ``[pairs]``."""
    out = torch.empty(len(row), dtype=x.dtype)
    arrays = (_plain(x), _plain(weight), _plain(row), _plain(latent))
    result = out.numpy()

    def piece(first: int, last: int) -> None:
        x_, weight_, row_, latent_ = arrays
        _dots(x_, weight_, row_[first:last], latent_[first:last], result[first:last])

    in_pieces(piece, len(row), _PAIRS)
    return out


def fit(
    active: Tensor, latent: Tensor, offsets: Tensor, weight: Tensor, base: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """:meth:`Backend.fit`, with each row's first pair in ``offsets``."""
    error, back = torch.empty_like(target, memory_format=torch.contiguous_format), torch.empty_like(active)
    begins = np.append(_plain(offsets), len(latent))
    rows_base = base[None] if base.dim() == 1 else base
    inputs = (_plain(active), _plain(latent), begins, _plain(weight), _plain(rows_base), _plain(target))
    outputs = (error.numpy(), back.numpy())
    in_pieces(lambda first, last: _fit(*inputs, first, last, *outputs), len(target), _ROWS)
    return error, back


def _plain(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().contiguous().numpy()
    return array


@compiled
def _dots(x, weight, row, latent, out):
    pairs, d = len(row), x.shape[1]
    zero = x.dtype.type(0)
    # four at a time hide the latency of memory
    for p in range(0, pairs - 3, 4):
        xa, xb, xc, xe = x[row[p]], x[row[p + 1]], x[row[p + 2]], x[row[p + 3]]
        wa, wb, wc, we = (
            weight[latent[p]],
            weight[latent[p + 1]],
            weight[latent[p + 2]],
            weight[latent[p + 3]],
        )
        sa, sb, sc, se = zero, zero, zero, zero
        for j in range(d):
            sa += xa[j] * wa[j]
            sb += xb[j] * wb[j]
            sc += xc[j] * wc[j]
            se += xe[j] * we[j]
        out[p], out[p + 1], out[p + 2], out[p + 3] = sa, sb, sc, se
    for p in range(pairs - pairs % 4, pairs):
        xa, wa = x[row[p]], weight[latent[p]]
        sa = zero
        for j in range(d):
            sa += xa[j] * wa[j]
        out[p] = sa


@compiled
def _fit(active, latent, begins, weight, base, target, first, last, error, back):
    d = target.shape[1]
    zero = target.dtype.type(0)
    for r in range(first, last):
        begin, end = begins[r], begins[r + 1]
        e, t, b = error[r], target[r], base[r % len(base)]
        for j in range(d):
            e[j] = b[j] - t[j]
        fours = begin + (end - begin) // 4 * 4
        for p in range(begin, fours, 4):
            ca, cb, cc, ce = active[p], active[p + 1], active[p + 2], active[p + 3]
            wa, wb = weight[latent[p]], weight[latent[p + 1]]
            wc, we = weight[latent[p + 2]], weight[latent[p + 3]]
            for j in range(d):
                e[j] += (ca * wa[j] + cb * wb[j]) + (cc * wc[j] + ce * we[j])
        for p in range(fours, end):
            ca, wa = active[p], weight[latent[p]]
            for j in range(d):
                e[j] += ca * wa[j]
        for p in range(begin, fours, 4):
            wa, wb = weight[latent[p]], weight[latent[p + 1]]
            wc, we = weight[latent[p + 2]], weight[latent[p + 3]]
            sa, sb, sc, se = zero, zero, zero, zero
            for j in range(d):
                sa += e[j] * wa[j]
                sb += e[j] * wb[j]
                sc += e[j] * wc[j]
                se += e[j] * we[j]
            back[p], back[p + 1], back[p + 2], back[p + 3] = sa, sb, sc, se
        for p in range(fours, end):
            wa = weight[latent[p]]
            sa = zero
            for j in range(d):
                sa += e[j] * wa[j]
            back[p] = sa
        for p in range(begin, end):
            if not active[p] > 0:
                back[p] = zero
