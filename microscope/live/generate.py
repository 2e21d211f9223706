"""Continuations of one prompt, base and patched, token by token, under a plan that may change in between.

Every token follows from the tokens so far and the plan of the moment alone: when the plan changes, keys
and values of the patched column are made anew from the prompt's run under it. Both columns draw with the
same noise, made from seed and step only, so they part where the patch parts them and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.live.run import PromptRun, embed, run_block
from microscope.models import BlockRunner
from microscope.models.runner import GrowingKeyValue
from microscope.params import plan_fingerprint
from microscope.patching.apply import Saes
from microscope.patching.program import Program

_NOISE_STRIDE = 1_000_003


@dataclass(frozen=True)
class Piece:
    """One new token of a column: what it adds to the text (empty inside a character) and its probability."""

    token: int
    text: str
    probability: float


@dataclass(frozen=True)
class Step:
    """Both columns' next tokens (None where a column has ended), the plan in force, and why all is over, if it is."""

    number: int
    plan: str
    base: Piece | None
    patched: Piece | None
    ended: str


class Continuation:
    """One column. Its keys and values are its own; those of the prompt are read, never written."""

    def __init__(self, runner: BlockRunner, run: PromptRun, program: Program, saes: Saes) -> None:
        self._runner, self._saes = runner, saes
        self.tokens: tuple[int, ...] = ()
        self.switch(run, program)

    def switch(self, run: PromptRun, program: Program) -> None:
        """Go on under another program; ``run`` is the prompt's under it."""
        self._run, self._program = run, program
        # Copied from the prompt's when the first token is run.
        self._past: list[GrowingKeyValue] = []
        self._fed, self._logits = 0, run.logits

    def follow(self, other: Continuation) -> None:
        """Become the same as another column of the same prompt."""
        self.switch(other._run, other._program)
        self.tokens = other.tokens

    def push(self, token: int) -> None:
        """Take a token as said."""
        self.tokens = (*self.tokens, token)

    def tensors(self) -> Iterator[Tensor]:
        """Everything held: the prompt's run and its own keys and values."""
        yield from self._run.tensors()
        yield self._logits
        for past in self._past:
            yield from past.tensors()

    @property
    def vocabulary(self) -> int:
        """Number of tokens to choose from."""
        return len(self._logits)

    @property
    def length(self) -> int:
        """Positions of prompt and continuation."""
        return len(self._run) + len(self.tokens)

    @torch.inference_mode()
    def logits(self, special: Callable[[int], bool]) -> Tensor:
        """Next-token logits ``[vocabulary]`` in float32, after running what was said since.

        Raises:
            MicroscopeError: ``not_finite``, ``taps_missing``.
        """
        new = self.tokens[self._fed :]
        if not new:
            return self._logits
        program, start = self._program, len(self._run) + self._fed
        device = self._run.tokens.device
        marks = torch.tensor([special(token) for token in new], device=device)
        if not self._past:
            self._past = [past.growing() for past in self._run.past]
        said = torch.tensor(self.tokens, dtype=torch.long, device=device)
        rows = self._runner.rows(torch.cat((self._run.tokens, said))[None], start)
        x, _ = embed(self._runner, program, rows)
        for layer in range(self._runner.n_layers):
            x, _, _ = run_block(self._runner, program, layer, x, rows, self._past[layer])
            site = program.sites.get(layer)
            if site is not None:
                delta, _ = site.delta(x, self._saes, marks, start, prompt=len(self._run))
                x = x if delta is None else x + delta.to(x.dtype)
        logits = self._runner.head(x[-1], program.head).float()
        if not bool(torch.isfinite(logits).all()):
            raise MicroscopeError(
                "not_finite",
                "The patched model's output is not finite.",
                "Lower the strength of the edits.",
            )
        self._fed, self._logits = len(self.tokens), logits
        return logits


@dataclass
class Generation:
    """A base and a patched column.

    Args:
        base: the unpatched column.
        patched: the patched one.
        seed: of the noise; equal seeds give equal texts.
        temperature: 0 takes the likeliest token.
        left: tokens still to be said.
        limit: longest sequence the model takes.
        decode: token ids to the text they are so far, whole characters only.
        special: whether a token is special.
        ends: tokens that end a column.
        plan: fingerprint of what the patched column follows.
    """

    base: Continuation
    patched: Continuation
    seed: int
    temperature: float
    left: int
    limit: int
    decode: Callable[[tuple[int, ...]], str]
    special: Callable[[int], bool]
    ends: frozenset[int]
    plan: str = ""
    number: int = 0
    over: set[str] = field(default_factory=set)
    texts: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> Iterator[Tensor]:
        """Everything both columns hold."""
        yield from self.base.tensors()
        yield from self.patched.tensors()

    def switch(self, run: PromptRun, program: Program) -> None:
        """Let the patched column go on under another plan; one that does the same changes nothing."""
        plan = plan_fingerprint(program.edits)
        if plan != self.plan:
            self.patched.switch(run, program)
            self.plan = plan

    def step(self) -> Step:
        """Say one token in each column that has not ended.

        Raises:
            MicroscopeError: what :meth:`Continuation.logits` raises.
        """
        same = not self.plan and self.patched.tokens == self.base.tokens
        noise = self._noise()
        base = self._say("base", self.base, noise)
        if same:
            # Unpatched and nothing said differently so far: the columns are one.
            self.patched.follow(self.base)
            patched = base
            if "base" in self.over:
                self.over.add("patched")
            self.texts["patched"] = self.texts.get("base", "")
        else:
            patched = self._say("patched", self.patched, noise)
        number, self.number, self.left = self.number, self.number + 1, self.left - 1
        return Step(number, self.plan, base, patched, self._ended())

    def _ended(self) -> str:
        if len(self.over) == 2:
            return "end_of_text"
        if max(self.base.length, self.patched.length) >= self.limit:
            return "context"
        return "tokens" if self.left <= 0 else ""

    def _noise(self) -> Tensor | None:
        """Gumbel noise ``[vocabulary]`` of this step."""
        if self.temperature == 0:
            return None
        generator = torch.Generator().manual_seed((self.seed * _NOISE_STRIDE + self.number) % 2**63)
        uniform = torch.rand(self.base.vocabulary, generator=generator, dtype=torch.float64)
        return -(-uniform.clamp_min(1e-300).log()).log()

    def _say(self, name: str, column: Continuation, noise: Tensor | None) -> Piece | None:
        if name in self.over:
            return None
        logits = column.logits(self.special).double()
        if noise is None:
            token = int(logits.argmax())
        else:
            token = int((logits / self.temperature + noise.to(logits.device)).argmax())
        probability = float(logits.log_softmax(0)[token].exp())
        column.push(token)
        if token in self.ends:
            self.over.add(name)
            return Piece(token, "", probability)
        text, said = self.decode(column.tokens), self.texts.get(name, "")
        self.texts[name] = text
        return Piece(token, text[len(said) :], probability)
