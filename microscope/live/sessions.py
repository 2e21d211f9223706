"""What is kept of one person's prompt, and how much of it can be made again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from microscope.live.generate import Generation
from microscope.live.run import PromptRun, bytes_held
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
    reserved: int = 0  # what it may come to hold while a text is being written
    counted: int | None = None  # its memory, while nothing changes it

    @property
    def baseline(self) -> PromptRun:
        """The unpatched run of a session that does not rest."""
        assert self.kept is not None
        return self.kept

    def forget_runs(self) -> None:
        """Let go of all that plans made."""
        self.changed()
        self.runs.clear()
        self.seen.clear()

    def rest(self) -> None:
        """Let go of everything but the prompt; a text that is being written keeps what it needs."""
        self.forget_runs()
        if self.generation is None:
            self.kept = None
        self.changed()

    def changed(self) -> None:
        """Its memory must be counted anew; whoever changes what it holds says so."""
        self.counted = None

    @property
    def nbytes(self) -> int:
        """Memory held; what runs share counts once."""
        if self.counted is None:
            self.counted = self._measure()
        return self.counted

    @property
    def claimed(self) -> int:
        """Memory held, or kept free for the text that is being written, whichever is more."""
        return self.nbytes if self.generation is None else max(self.nbytes, self.reserved)

    def _measure(self) -> int:
        return bytes_held(self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.tokens, self.special)
        for run in (*(() if self.kept is None else (self.kept,)), *self.runs.values()):
            yield from run.tensors()
        for outcome in self.seen.values():
            yield outcome.logits
            yield from (effect.sizes for effect in outcome.effects)
        if self.generation is not None:
            yield from self.generation.tensors()
