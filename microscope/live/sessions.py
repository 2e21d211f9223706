"""What is kept of one person's prompt, and how much of it can be made again."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from torch import Tensor

from microscope.live.generate import Generation
from microscope.live.run import PromptRun
from microscope.patching.apply import EditEffect


@dataclass(frozen=True)
class Outcome:
    """Result of one plan.

    ``logits`` are the last position's ``[vocabulary]`` in float32. ``first_layer`` and
    ``first_position`` say where recomputation began; both are −1 when nothing had to be computed.
    """

    logits: Tensor
    effects: tuple[EditEffect, ...]
    first_layer: int
    first_position: int


@dataclass
class Session:
    """A prompt ``[positions]`` and what was computed for it.

    ``kept`` is the unpatched run, None while the session rests: it is made again when next needed. ``seen``
    are answers and ``runs`` whole runs, both by fingerprint of the plan.
    """

    tokens: Tensor
    special: Tensor
    kept: PromptRun | None = None
    seen: OrderedDict[str, Outcome] = field(default_factory=OrderedDict)
    runs: OrderedDict[str, PromptRun] = field(default_factory=OrderedDict)
    generation: Generation | None = None

    @property
    def baseline(self) -> PromptRun:
        """The unpatched run of a session that does not rest."""
        assert self.kept is not None
        return self.kept

    def forget_runs(self) -> None:
        """Let go of all that plans made."""
        self.runs.clear()
        self.seen.clear()

    def rest(self) -> None:
        """Let go of everything but the prompt; a text that is being written keeps what it needs."""
        self.forget_runs()
        if self.generation is None:
            self.kept = None

    @property
    def nbytes(self) -> int:
        """Memory held; runs share states, which count once."""
        kept = () if self.kept is None else (self.kept,)
        tensors = {
            id(t): t.nbytes
            for run in (*kept, *self.runs.values())
            for layer in run.layers
            for t in (
                layer.x,
                layer.edited,
                *layer.past,
                *(c for codes in layer.codes.values() for c in codes),
            )
        }
        written = 0 if self.generation is None else self.generation.nbytes
        return sum(tensors.values()) + sum(o.logits.nbytes for o in self.seen.values()) + written
