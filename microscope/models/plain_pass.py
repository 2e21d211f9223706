"""A pass of a model as it is, which what is computed otherwise is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from microscope.models.own_blocks import Call, OwnBlocks
from microscope.models.stream import first_tensor

ROWS = 20
# Largest deviation of any row.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}
# Rounding a stream costs so much of its length, in terms of what is allowed of what a block adds to it.
_SHARE = {torch.float32: 1e-2, torch.bfloat16: 0.15, torch.float16: 0.2}


@dataclass(frozen=True)
class Pass:
    """A plain pass of the model: its ids ``[1, rows]``, arguments and outputs of its blocks, logits.

    ``tolerance`` is what any row may deviate by from these: that of the coarsest precision in the blocks, since
    some keep their stream in float32 and compute in half precision.
    """

    tokens: Tensor
    calls: list[Call]
    streams: list[Tensor]
    logits: Tensor
    tolerance: float


@torch.inference_mode()
def plain_pass(own: OwnBlocks, vocabulary: int, device: torch.device, rows: int = ROWS) -> Pass:
    """Run the model on ids that lie evenly in its vocabulary, without a cache.

    One is its padding, if it has any: some families count positions without it.
    """
    step = max(1, vocabulary // (rows + 1))
    tokens = (torch.arange(1, rows + 1, device=device) * step % vocabulary)[None]
    padding = getattr(own.config, "pad_token_id", None)
    if isinstance(padding, int) and 0 <= padding < vocabulary:
        tokens[0, rows // 2] = padding
    calls, outputs, logits = own.trace(tokens)
    streams = [first_tensor(output) for output in outputs]
    dtypes = {streams[0].dtype, *(p.dtype for p in own.blocks.parameters())}
    tolerance = max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes)
    return Pass(tokens, calls, streams, logits, tolerance or TOLERANCE[torch.float32])


def deviation(a: Tensor, b: Tensor, x: Tensor | None = None) -> float:
    """Largest difference of two tensors' rows ``[…, width]``, relative to the rows of the second.

    Of a block's outputs, whose inputs are ``x``, relative to what the block adds and a share of its input.
    Infinite for tensors of other shapes, and for differences that are no number.
    """
    if a.shape != b.shape:
        return float("inf")
    exact = b.float()
    size = exact.norm(dim=-1)
    if x is not None:
        size = (exact - x.float()).norm(dim=-1) + _SHARE.get(x.dtype, 1e-2) * x.float().norm(dim=-1)
    found = float(((a.float() - exact).norm(dim=-1) / size.clamp_min(1e-30)).max())
    return found if found == found else float("inf")
