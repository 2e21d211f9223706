"""Rounding to bfloat16, and what it takes from each row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from microscope.sae.backends.cpu.compiled import compiled
from microscope.sae.backends.error_bound import Rounded
from microscope.threads import in_pieces

_ROWS = 512


def rounded_rows(x: Tensor) -> Rounded:
    """Round float32 rows ``[rows, d]`` to bfloat16."""
    values = x.detach().contiguous().numpy()
    bits = np.empty(values.shape, np.int16)
    norm, lost = np.empty(len(values), np.float32), np.empty(len(values), np.float32)

    def piece(first: int, last: int) -> None:
        some = values[first:last]
        _round(some, some.view(np.int32), bits[first:last], norm[first:last], lost[first:last])

    in_pieces(piece, len(values), _ROWS)
    return Rounded(
        torch.from_numpy(bits).view(torch.bfloat16), torch.from_numpy(norm), torch.from_numpy(lost)
    )


@compiled
def _round(values, bits, out, norm, lost):
    rows, d = values.shape
    zero = values.dtype.type(0)
    kept = np.empty(d, np.int32)
    back = kept.view(np.float32)
    for r in range(rows):
        x, b, o = values[r], bits[r], out[r]
        for j in range(d):
            # to nearest, of two equally near ones to the even
            high = (b[j] + 0x7FFF + ((b[j] >> 16) & 1)) >> 16
            o[j] = high
            kept[j] = high << 16
        whole, difference = zero, zero
        for j in range(d):
            whole += x[j] * x[j]
            difference += (x[j] - back[j]) * (x[j] - back[j])
        norm[r], lost[r] = np.sqrt(whole), np.sqrt(difference)
