"""Next-token distributions, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shift:
    """Probability of one token unpatched and patched."""

    token: int
    base: float
    patched: float


@dataclass(frozen=True)
class Comparison:
    """Two next-token distributions: chosen tokens, KL(base ‖ patched) and both entropies, in nats."""

    shifts: tuple[Shift, ...]
    kl: float
    entropy_base: float
    entropy_patched: float


@torch.inference_mode()
def compare(base: Tensor, patched: Tensor, *, top: int, pinned: Sequence[int] = ()) -> Comparison:
    """Compare two logit vectors ``[vocabulary]``.

    The tokens shown are the ``top`` of each and the pinned ones, by the larger of their probabilities.
    """
    p, q = base.double().log_softmax(0), patched.double().log_softmax(0)
    top = min(top, len(p))
    shown = torch.cat(
        (p.topk(top).indices, q.topk(top).indices, torch.tensor(pinned, dtype=torch.long, device=p.device))
    )
    chosen = shown.unique()
    pairs = torch.stack((p[chosen], q[chosen])).exp().T.tolist()
    shifts = [Shift(t, *pair) for t, pair in zip(chosen.tolist(), pairs, strict=True)]
    shifts.sort(key=lambda shift: -max(shift.base, shift.patched))
    same = patched is base
    kl = 0.0 if same else float((p.exp() * (p - q)).sum().clamp_min(0))
    return Comparison(tuple(shifts), kl, float(-(p.exp() * p).sum()), float(-(q.exp() * q).sum()))
