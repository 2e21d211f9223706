"""A model kept in memory for many people's prompts and patches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.live.attached import Attached
from microscope.live.distribution import Comparison, compare
from microscope.live.generate import Continuation, Generation, Step
from microscope.live.readings import feature_activations, filtered, position_shifts, sinks
from microscope.live.replay import replay
from microscope.live.run import PromptRun
from microscope.live.sessions import Outcome, Session, SessionCache
from microscope.models import BlockRunner, LoadedModel, runner_for
from microscope.models.memory import bytes_free
from microscope.params import EditPlan, plan_fingerprint, validate_plan
from microscope.patching.adapters import LowRankAdapter
from microscope.patching.program import Program, bind
from microscope.sae import SparseAutoencoder

# Outcomes kept per session; each holds one vector of logits.
_OUTCOMES_PER_SESSION = 32
# Whole runs kept per session besides the baseline, for edits above to restart from.
_RUNS_PER_SESSION = 2
DEFAULT_CACHE_BYTES = 2 * 2**30
DEFAULT_ATTACHED_BYTES = 4 * 2**30
MAX_GENERATED = 4096


@dataclass(frozen=True)
class PromptView:
    """A tokenised prompt as shown to a person: ids, texts, and which tokens edits leave alone."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    special: tuple[bool, ...]
    sink: tuple[bool, ...]


@dataclass(frozen=True)
class Applied:
    """Answer to one plan.

    ``reused`` is ``cache``, ``baseline`` or ``computed``, ``milliseconds`` the compute time, ``path`` that of the
    runner that answered.
    """

    fingerprint: str
    comparison: Comparison
    outcome: Outcome
    baseline: str
    reused: str
    milliseconds: float
    path: str


class ResidentModel:
    """One model, its attached SAEs, and the sessions of people working on it.

    Weights are never written and no state of one session enters another's forward pass: a plan is an
    argument. Not thread-safe: one compute thread owns it.

    Args:
        loaded: the model.
        cache_bytes: what sessions may keep for speed. Above it the least recently used give up their patched
            runs, then their unpatched one, which is made again when they go on.
        attached_bytes: what attached SAEs and adapters may take together; above it the least recently used are
            read again when used.
        packed_bytes: what may be spent on a second copy of weights in the processor's own layout; None
            takes a quarter of the memory that is free.
        runner: computes the model; None takes the fastest that is proven to.

    Attributes:
        runner: computes the model block by block.
        attached: SAEs and adapters that plans may name.
        sessions: people's prompts and what was computed for them.
        special_tokens: ids that edits leave alone unless they ask for them.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        attached_bytes: int = DEFAULT_ATTACHED_BYTES,
        packed_bytes: int | None = None,
        runner: BlockRunner | None = None,
    ) -> None:
        self.loaded = loaded
        self.runner = runner or runner_for(loaded)
        free = bytes_free(loaded.device) // 4 if packed_bytes is None else packed_bytes
        self.packed_bytes = self.runner.pack(free)
        self.attached = Attached(loaded, attached_bytes)
        self.sessions = SessionCache(loaded, self.runner, cache_bytes)
        self.special_tokens = frozenset(loaded.tokenizer.all_special_ids)

    @property
    def max_context(self) -> int:
        """Longest prompt, in tokens."""
        return self.loaded.max_context

    def token_text(self, token: int) -> str:
        """A token alone, as text."""
        return self.loaded.texts(token)

    def attach(self, path: str | Path, *, expect: str = "") -> SparseAutoencoder:
        """Load an SAE so that plans may refer to it by fingerprint; raises what :meth:`Attached.attach_sae` raises."""
        return self.attached.attach_sae(path, expect=expect)

    def attach_adapter(self, path: str | Path, *, expect: str = "") -> LowRankAdapter:
        """Load a low-rank adapter likewise; raises what :meth:`Attached.attach_adapter` raises."""
        return self.attached.attach_adapter(path, expect=expect)

    # --- sessions -------------------------------------------------------------------------------------

    def open(self, session: str, prompt: str, *, top: int = 10) -> tuple[PromptView, Comparison]:
        """Tokenise a prompt, run it unpatched and keep the result under the session's name.

        Raises:
            MicroscopeError: ``empty_prompt``, ``no_such_token``, ``prompt_too_long`` or ``session_too_big``.
        """
        ids = self.loaded.encode_prompt(prompt)
        need = 2 * self.sessions.run_bytes(len(ids))
        self.sessions.admit(session, need, f"The prompt of {len(ids)} tokens")
        device = self.loaded.device
        special = torch.tensor([i in self.special_tokens for i in ids], device=device)
        baseline = self.sessions.add(session, Session(torch.tensor(ids, device=device), special, prompt))
        return self._view(baseline), compare(baseline.logits, baseline.logits, top=top)

    def close(self, session: str) -> None:
        """Forget a session; unknown names are fine."""
        self.sessions.close(session)

    def apply(self, session: str, plan: EditPlan, *, top: int = 10, pinned: Sequence[int] = ()) -> Applied:
        """Next-token distribution of a session's prompt under a plan, beside the unpatched one.

        A generation that runs in the session goes on under this plan.

        Raises:
            MicroscopeError: ``no_session``, what :func:`validate_plan` and :func:`bind` raise,
                ``no_such_token`` or ``not_finite``.
        """
        started = time.perf_counter()
        state = self.sessions.get(session)
        program = self._bind(plan)
        if any(not 0 <= token < self.loaded.vocab_size for token in pinned):
            raise MicroscopeError("no_such_token", "A pinned token is not in the vocabulary.")
        fingerprint = plan_fingerprint(plan)
        outcome = state.outcomes.get(fingerprint)
        reused = "cache"
        if outcome is None:
            outcome = self._compute(state, fingerprint, program)
            if outcome.logits is state.baseline.logits:
                reused = "baseline"
            elif outcome.first_layer >= 0:
                reused = "computed"
        if state.generation is not None:
            self._steer(state, state.generation, plan)
        comparison = compare(state.baseline.logits, outcome.logits, top=top, pinned=pinned)
        milliseconds = 1000 * (time.perf_counter() - started)
        digest, path = state.baseline.digest, self.runner.path
        return Applied(fingerprint, comparison, outcome, digest, reused, milliseconds, path)

    def _bind(self, plan: EditPlan, *, generating: bool = False) -> Program:
        validate_plan(plan, n_layers=self.loaded.n_layers)
        return bind(
            plan,
            family=self.loaded.family,
            n_layers=self.loaded.n_layers,
            saes=self.attached.saes,
            adapters=self.attached.adapters,
            generating=generating,
        )

    def _compute(self, state: Session, fingerprint: str, program: Program) -> Outcome:
        run, layer, position = self._run(state, program)
        outcome = Outcome(run.logits, run.effects(), layer, position)
        state.outcomes[fingerprint] = outcome
        if len(state.outcomes) > _OUTCOMES_PER_SESSION:
            state.outcomes.popitem(last=False)
        return outcome

    def _run(self, state: Session, program: Program) -> tuple[PromptRun, int, int]:
        """The prompt's run under a program, from the nearest run at hand, and where computing began."""
        fingerprint = plan_fingerprint(program.edits)
        known = state.runs.get(fingerprint)
        if known is not None:
            state.runs.move_to_end(fingerprint)
            return known, -1, -1
        self.sessions.make_room(self.sessions.run_bytes(len(state.baseline)))
        references = (state.baseline, *state.runs.values())
        replayed = replay(self.runner, references, program, self.attached.saes)
        run = replayed.run
        state.changed()  # encodings may have been added, too
        # A change may be infinite where a norm behind it makes the output finite again.
        for values in (run.logits, *(effect.sizes for effect in run.effects())):
            _require_finite(values)
        if replayed.first_layer >= 0:
            state.runs[fingerprint] = run
            while len(state.runs) > _RUNS_PER_SESSION:
                state.runs.popitem(last=False)
            self.sessions.make_room()
        return run, replayed.first_layer, replayed.first_position

    # --- generation -----------------------------------------------------------------------------------

    def start_generation(
        self, session: str, plan: EditPlan, *, seed: int = 0, temperature: float = 0.0, max_tokens: int = 64
    ) -> None:
        """Begin to continue a session's prompt, unpatched and under a plan; ends one that runs.

        Args:
            session: whose prompt.
            plan: what to change; :meth:`apply` changes it between tokens.
            seed: equal seeds give equal texts.
            temperature: 0 takes the likeliest token.
            max_tokens: length of the continuation.

        Raises:
            MicroscopeError: ``bad_generation``, ``prompt_too_long`` or what :meth:`apply` raises.
        """
        state = self.sessions.get(session)
        if not (0.0 <= temperature <= 100.0 and 1 <= max_tokens <= MAX_GENERATED and 0 <= seed < 2**53):
            raise MicroscopeError(
                "bad_generation",
                f"Seed {seed}, temperature {temperature}, {max_tokens} tokens: out of range.",
                f"Use a seed from 0, a temperature from 0 to 100 and 1 to {MAX_GENERATED} tokens.",
            )
        if len(state.baseline) >= self.max_context:
            raise MicroscopeError(
                "prompt_too_long",
                f"The prompt fills the model's context of {self.max_context} tokens.",
                "Shorten it to leave room for a continuation.",
            )
        run_bytes = self.sessions.run_bytes
        in_prompt, written = run_bytes(len(state.baseline)), run_bytes(max_tokens)
        need = 2 * (2 * in_prompt + written)
        self.sessions.admit(session, need, f"A text of {max_tokens} tokens behind the prompt")
        empty = self._bind(EditPlan())
        columns = [Continuation(self.runner, state.baseline, empty, self.attached.saes) for _ in range(2)]
        ends = getattr(self.loaded.config, "eos_token_id", None)
        ends = ends if isinstance(ends, list) else [ends, self.loaded.tokenizer.eos_token_id]
        generation = Generation(
            base=columns[0],
            patched=columns[1],
            seed=seed,
            temperature=temperature,
            left=max_tokens,
            limit=self.max_context,
            decode=self.loaded.texts.so_far,
            special=self.special_tokens.__contains__,
            ends=frozenset(token for token in ends if token is not None),
        )
        self._steer(state, generation, plan)
        state.generation, state.reserved = generation, need
        state.changed()

    def _steer(self, state: Session, generation: Generation, plan: EditPlan) -> None:
        """Make a plan the one under which the patched column goes on."""
        in_prompt = self._bind(plan)
        run, _, _ = self._run(state, in_prompt)
        generation.switch(run, self._bind(plan, generating=True))
        state.changed()

    def next_tokens(self, session: str) -> Step:
        """The next token of both columns; the last one says why it is.

        Raises:
            MicroscopeError: ``no_session``, ``no_generation`` or ``not_finite``, which ends it.
        """
        state = self.sessions.get(session)
        generation = state.generation
        if generation is None:
            raise MicroscopeError("no_generation", "Nothing is being generated.", "Start a generation first.")
        state.changed()
        try:
            step = generation.step()
        except BaseException:
            self.stop_generation(session)
            raise
        if step.ended:
            self.stop_generation(session)
        return step

    def stop_generation(self, session: str) -> None:
        """End a generation; it is fine if there is none."""
        state = self.sessions.by_name.get(session)
        if state is not None:
            state.generation = None
            state.changed()

    # --- readings -------------------------------------------------------------------------------------

    def read_features(
        self, session: str, sae: str, *, indices: Sequence[int] = (), top: int = 20
    ) -> list[tuple[int, list[float]]]:
        """Activations of features at every position of the unpatched prompt.

        Args:
            session: whose prompt.
            sae: fingerprint of an attached SAE.
            indices: which features; when empty, the ``top`` by their highest activation.

        Raises:
            MicroscopeError: ``no_session``, ``sae_not_attached`` or ``no_such_feature``.
        """
        baseline = self.sessions.get(session).baseline
        return feature_activations(self.attached.sae(sae), baseline, indices, top)

    def left_out(self, session: str, sae: str) -> list[int]:
        """Positions of a session's prompt that the token filter of an attached SAE leaves out.

        Raises:
            MicroscopeError: ``no_session`` or ``sae_not_attached``.
        """
        kept = filtered(self.attached.sae(sae), self.sessions.get(session).baseline)
        return (~kept).nonzero()[:, 0].tolist()

    def read_positions(self, session: str, plan: EditPlan) -> tuple[str, list[float]]:
        """How far a plan moves the next-token distribution at every position of a session's prompt.

        Returns:
            The plan's fingerprint and KL(base ‖ patched) in nats per position, exactly 0 in front of the
            first row that the plan changes.

        Raises:
            MicroscopeError: what :meth:`apply` raises.
        """
        state = self.sessions.get(session)
        program = self._bind(plan)
        run, _, _ = self._run(state, program)
        kl = position_shifts(self.runner, state.baseline, run)
        _require_finite(kl)
        return plan_fingerprint(plan), kl.tolist()

    # --- inside ---------------------------------------------------------------------------------------

    def _view(self, baseline: PromptRun) -> PromptView:
        ids = baseline.tokens.tolist()
        sink = sinks(baseline)
        texts = tuple(self.loaded.texts.each(ids))
        return PromptView(tuple(ids), texts, tuple(baseline.special.tolist()), tuple(sink.tolist()))


def _require_finite(values: Tensor) -> None:
    """Raises :class:`MicroscopeError` ``not_finite``."""
    if not bool(torch.isfinite(values).all()):
        raise MicroscopeError(
            "not_finite", "The patched model's output is not finite.", "Lower the strength of the edits."
        )
