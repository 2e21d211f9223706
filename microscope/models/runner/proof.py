"""Whether a runner computes what the model does, in numbers, before it serves.

Every block is run on the inputs it has in a plain pass of the model, and compared with its outputs there: so
errors of blocks do not add up, and one that is wrong shows as itself. Texts are made of the model's own ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from microscope.hardware import is_out_of_memory
from microscope.models.configuration import first_line
from microscope.models.own_blocks import Call
from microscope.models.plain_pass import Pass, deviation
from microscope.models.runner.base import BlockRunner

# Rows continued behind the others, all at once and then one.
_CONTINUED = 4


@dataclass(frozen=True)
class Proof:
    """Largest deviations from a plain pass of the model, of any row, and what stands against the runner.

    They are relative to a row's length, not to the largest entry of all: a few rows of a stream are hundreds of
    times longer than the others, and would hide errors in those.
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


@torch.inference_mode()
def prove(runner: BlockRunner, seen: Pass) -> Proof:
    """Compare a runner with a plain pass of its model."""
    try:
        found = _measure(runner, seen)
    except Exception as error:  # blocks that want other arguments fail in as many ways as there are families
        if is_out_of_memory(error):
            raise
        return Proof(against=f"its blocks cannot be run one by one ({first_line(error)[:160]})")
    for what, value in (
        ("the input of its first block", found.embedding),
        ("its blocks", found.blocks),
        ("rows that continue others", found.continued),
        ("its logits", found.head),
    ):
        if not value <= seen.tolerance:
            return Proof(
                found.embedding,
                found.blocks,
                found.continued,
                found.head,
                f"{what} deviate by {value:.1e} from the model's own pass, {seen.tolerance:.0e} is allowed",
            )
    return found


def _measure(runner: BlockRunner, seen: Pass) -> Proof:
    rows = seen.tokens.shape[1]
    start = rows - _CONTINUED
    whole, first = runner.rows(seen.tokens), runner.rows(seen.tokens[:, :start])
    alone = runner.rows(seen.tokens[:, :1])
    several, one = runner.rows(seen.tokens, start), runner.rows(seen.tokens, rows - 1)
    blocks = continued = 0.0
    # From the top down: a block that reads what one below it has left in the cache finds nothing there.
    for call, out in reversed(list(zip(seen.calls, seen.streams, strict=True))):
        x = call.x.clone()
        y, past = runner.block(call.layer, x, whole, None)
        if not torch.equal(x, call.x):
            raise ValueError(f"block {call.layer} writes to its input")
        blocks = max(blocks, deviation(y, out, call.x))
        # Some blocks take another way for one row.
        y, _ = runner.block(call.layer, call.x[:, :1], alone, None)
        blocks = max(blocks, deviation(y, out[:, :1], call.x[:, :1]))
        _, before = runner.block(call.layer, call.x[:, :start], first, None)
        # Another text in between: a block that keeps a state in itself would go on from that one.
        runner.block(call.layer, call.x[:, :start].flip(1), first, None)
        y, _ = runner.block(call.layer, call.x[:, start:], several, before)
        continued = max(continued, deviation(y, out[:, start:], call.x[:, start:]))
        if runner.cuttable:
            y, _ = runner.block(call.layer, call.x[:, -1:], one, past.upto(rows - 1))
            continued = max(continued, deviation(y, out[:, -1:], call.x[:, -1:]))
    embedding = deviation(runner.embed(whole), seen.calls[0].x)
    embedding = max(embedding, deviation(runner.embed(several), seen.calls[0].x[:, start:]))
    head = deviation(runner.head(seen.streams[-1]), seen.logits)
    return Proof(embedding, blocks, continued, head)


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
    if isinstance(a, (bool, int, float, str)):
        return type(a) is type(b) and a == b
    return type(a) is type(b)
