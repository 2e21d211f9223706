"""Whether a runner computes what the model does, in numbers, before it serves.

Every block is run on the inputs it has in a plain pass of the model, and compared with its outputs there: so
errors of blocks do not add up, and one that is wrong shows as itself. Texts are made of the model's own ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microscope.models.runner.base import BlockRunner
from microscope.models.runner.own_blocks import Call, OwnBlocks, stream_in

ROWS = 20
# Rows continued behind the others, all at once and then one.
_CONTINUED = 4
# Largest deviation, relative to the largest entry of what it is compared with.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2, torch.float16: 1e-2}


@dataclass(frozen=True)
class Proof:
    """Largest relative deviations from a plain pass of the model, and what stands against the runner.

    ``embedding``, ``blocks`` (whole sequences), ``continued`` (rows behind others) and ``head`` are numbers;
    ``against`` is a sentence, empty when all are within the tolerance.
    """

    embedding: float = 0.0
    blocks: float = 0.0
    continued: float = 0.0
    head: float = 0.0
    against: str = ""

    @property
    def holds(self) -> bool:
        """Whether the runner may serve."""
        return not self.against

    @property
    def error(self) -> float:
        """The largest deviation."""
        return max(self.embedding, self.blocks, self.continued, self.head)


@dataclass(frozen=True)
class Pass:
    """A plain pass of the model: its ids ``[1, rows]``, arguments and outputs of its blocks, logits."""

    tokens: Tensor
    calls: list[Call]
    streams: list[Tensor]
    logits: Tensor


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
    return Pass(tokens, calls, [stream_in(output) for output in outputs], logits)


@torch.inference_mode()
def prove(runner: BlockRunner, seen: Pass) -> Proof:
    """Compare a runner with a plain pass of its model."""
    tolerance = TOLERANCE.get(seen.streams[0].dtype, 1e-4)
    try:
        found = _measure(runner, seen)
    except Exception as error:  # blocks that want other arguments fail in as many ways as there are families
        return Proof(
            against=f"its blocks cannot be run one by one ({str(error).strip().splitlines()[0][:160]})"
        )
    for what, value in (
        ("the input of its first block", found.embedding),
        ("its blocks", found.blocks),
        ("rows that continue others", found.continued),
        ("its logits", found.head),
    ):
        if not value <= tolerance:
            return Proof(
                found.embedding,
                found.blocks,
                found.continued,
                found.head,
                f"{what} deviate by {value:.1e} of the largest value from the model's own pass, "
                f"{tolerance:.0e} is allowed",
            )
    return found


def _measure(runner: BlockRunner, seen: Pass) -> Proof:
    rows = seen.tokens.shape[1]
    start = rows - _CONTINUED
    whole, first = runner.rows(seen.tokens), runner.rows(seen.tokens[:, :start])
    several, one = runner.rows(seen.tokens, start), runner.rows(seen.tokens, rows - 1)
    blocks = continued = 0.0
    for call, out in zip(seen.calls, seen.streams, strict=True):
        y, past = runner.block(call.layer, call.x, whole, None)
        blocks = max(blocks, deviation(y, out))
        _, before = runner.block(call.layer, call.x[:, :start], first, None)
        # Another text in between: a block that keeps a state in itself would go on from that one.
        runner.block(call.layer, call.x[:, :start].flip(1), first, None)
        y, _ = runner.block(call.layer, call.x[:, start:], several, before)
        continued = max(continued, deviation(y, out[:, start:]))
        if runner.cuttable:
            y, _ = runner.block(call.layer, call.x[:, -1:], one, past.upto(rows - 1))
            continued = max(continued, deviation(y, out[:, -1:]))
    embedding = deviation(runner.embed(whole), seen.calls[0].x)
    embedding = max(embedding, deviation(runner.embed(several), seen.calls[0].x[:, start:]))
    head = deviation(runner.head(seen.streams[-1]), seen.logits)
    return Proof(embedding, blocks, continued, head)


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference of two tensors, relative to the largest entry of the second; infinite for other shapes."""
    if a.shape != b.shape:
        return float("inf")
    largest = float((a.float() - b.float()).abs().max()) / max(float(b.float().abs().max()), 1e-30)
    return largest if largest == largest else float("inf")


def same_arguments(noted: list[Call], seen: list[Call]) -> str:
    """Whether blocks are handed the same when they are noted only as when they run; a reason why not, or nothing."""
    for a, b in zip(noted, seen, strict=True):
        if not _equal((a.args, a.kwargs), (b.args, b.kwargs)):
            return f"block {a.layer} reads what earlier blocks computed besides the stream"
    return ""


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    return True
