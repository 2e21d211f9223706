"""A model kept in memory for many people's prompts and patches."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from microscope.activations.token_filters import SINK_FACTOR, filter_on_model
from microscope.errors import MicroscopeError
from microscope.heap import trim_heap
from microscope.live.distribution import Comparison, compare
from microscope.live.generate import Continuation, Generation, Step
from microscope.live.replay import replay
from microscope.live.run import PromptRun, run_baseline
from microscope.live.sessions import Outcome, Session
from microscope.live.shelf import AdapterShelf, Room, SaeShelf, size_of
from microscope.models import LoadedModel, runner_for
from microscope.models.memory import bytes_free, bytes_per_position
from microscope.params import EditPlan, Site, plan_fingerprint, validate_plan
from microscope.patching.adapters import LowRankAdapter
from microscope.patching.apply import feature_values
from microscope.patching.program import Program, bind
from microscope.sae import SparseAutoencoder, TokenFilter

# Patched states kept per session; each holds one vector of logits.
_SEEN_PER_SESSION = 32
# Whole runs kept per session besides the baseline, for edits above to restart from.
_RUNS_PER_SESSION = 2
DEFAULT_CACHE_BYTES = 2 * 2**30
DEFAULT_ATTACHED_BYTES = 4 * 2**30
MAX_GENERATED = 4096
# Freed memory is given back to the system in portions of so much.
_TRIM_BYTES = 64 * 2**20
# Positions whose whole vocabulary is held at once.
_HEAD_ROWS = 16


@dataclass(frozen=True)
class PromptView:
    """A tokenised prompt as shown to a person: ids, texts, and which tokens edits leave alone."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    special: tuple[bool, ...]
    sink: tuple[bool, ...]


@dataclass(frozen=True)
class Applied:
    """Answer to one plan. ``reused`` is ``cache``, ``baseline`` or ``computed``; ``milliseconds`` the compute time."""

    fingerprint: str
    comparison: Comparison
    outcome: Outcome
    baseline: str
    reused: str
    milliseconds: float


class ResidentModel:
    """One model, its attached SAEs, and the sessions of people working on it.

    Weights are never written and no state of one session enters another's forward pass: a plan is an
    argument. Not thread-safe: one compute thread owns it.

    Args:
        loaded: the model.
        cache_bytes: what sessions may keep for speed. Above it those that rested longest give up their
            patched runs, then their unpatched one, which is made again when they go on.
        attached_bytes: what attached SAEs and adapters may take together; above it those that rested longest
            are read again when used.
        packed_bytes: what may be spent on a second copy of weights in the processor's own layout; None
            takes a quarter of the memory that is free.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        attached_bytes: int = DEFAULT_ATTACHED_BYTES,
        packed_bytes: int | None = None,
    ) -> None:
        self.loaded = loaded
        self._cache_limit = cache_bytes
        self._runner = runner_for(loaded)
        free = bytes_free(loaded.device) // 4 if packed_bytes is None else packed_bytes
        self.packed_bytes = self._runner.pack(free)
        self._room = Room(attached_bytes)
        self._derived: dict[str, TokenFilter] = {}  # by site, for SAEs without a token filter of their own
        self._saes = SaeShelf(self._room, loaded.device, self._settle_filter)
        self._adapters = AdapterShelf(self._room, loaded.device)
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._garbage = 0  # bytes let go since memory was last given back
        self._special = frozenset(loaded.tokenizer.all_special_ids)

    @property
    def max_context(self) -> int:
        """Longest prompt, in tokens."""
        return min(self.loaded.max_context, self._runner.max_context or self.loaded.max_context)

    def token_text(self, token: int) -> str:
        """A token alone, as text."""
        return self.loaded.texts(token)

    # --- autoencoders ---------------------------------------------------------------------------------

    @property
    def saes(self) -> tuple[str, ...]:
        """Fingerprints of the attached SAEs."""
        return tuple(self._saes)

    def make_room_for(self, path: str | Path) -> None:
        """Put away what rested longest of what is attached, before something is read that needs its place."""
        self._room.make(size_of(Path(path)))

    def read_sae(self, path: str | Path, *, expect: str = "") -> tuple[str, SparseAutoencoder] | None:
        """Read an SAE for :meth:`attach`, on any thread; None if it is attached already.

        Raises:
            MicroscopeError: ``no_sae``, ``bad_sae``, ``sae_too_big`` or ``wrong_sae`` (another fingerprint than
                expected).
        """
        return None if expect and expect in self._saes else self._saes.load(Path(path), expect=expect)

    def attach(
        self, path: str | Path, *, expect: str = "", read: tuple[str, SparseAutoencoder] | None = None
    ) -> SparseAutoencoder:
        """Load an SAE, unless it is ``read`` already, so that plans may refer to it by fingerprint.

        Raises:
            MicroscopeError: what :meth:`read_sae` raises, or ``wrong_model`` (trained on a model with other
                weights).
        """
        if expect and expect in self._saes:
            return self._saes[expect]
        if read is None:
            self.make_room_for(path)
        found, sae = read or self._saes.load(Path(path), expect=expect)
        trained_on = sae.config.model.get("fingerprint")
        if trained_on and trained_on != self.loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                f"The SAE was trained on another model ({sae.config.model.get('reference')}).",
                "Attach it to the model it was trained on.",
            )
        self._saes.keep(found, sae, Path(path))
        return sae

    @property
    def adapters(self) -> tuple[str, ...]:
        """Fingerprints of the attached adapters."""
        return tuple(self._adapters)

    def read_adapter(self, path: str | Path, *, expect: str = "") -> tuple[str, LowRankAdapter] | None:
        """Read a low-rank adapter for :meth:`attach_adapter`, on any thread; None if it is attached already.

        Raises:
            MicroscopeError: what :func:`load_adapter` raises, ``adapter_too_big`` or ``wrong_adapter`` (another
                fingerprint than expected).
        """
        return None if expect and expect in self._adapters else self._adapters.load(Path(path), expect=expect)

    def attach_adapter(
        self, path: str | Path, *, expect: str = "", read: tuple[str, LowRankAdapter] | None = None
    ) -> LowRankAdapter:
        """Load a low-rank adapter, unless it is ``read`` already, so that plans may refer to it by fingerprint.

        Raises:
            MicroscopeError: what :meth:`read_adapter` raises, ``wrong_model``, ``no_such_module`` or
                ``wrong_adapter_shape``.
        """
        if expect and expect in self._adapters:
            return self._adapters[expect]
        if read is None:
            self.make_room_for(path)
        found, adapter = read or self._adapters.load(Path(path), expect=expect)
        if adapter.model and adapter.model != self.loaded.fingerprint:
            raise MicroscopeError(
                "wrong_model",
                "The adapter was made for other weights than those of this model.",
                "Use it with the model it was made for.",
            )
        adapter.check(self.loaded.model)
        self._adapters.keep(found, adapter, Path(path))
        return adapter

    # --- sessions -------------------------------------------------------------------------------------

    def open(self, session: str, prompt: str, *, top: int = 10) -> tuple[PromptView, Comparison]:
        """Tokenise a prompt, run it unpatched and keep the result under the session's name.

        Raises:
            MicroscopeError: ``empty_prompt``, ``no_such_token``, ``prompt_too_long`` or ``session_too_big``.
        """
        ids = self.loaded.encode(prompt, "The prompt")
        if not ids:
            raise MicroscopeError("empty_prompt", "The prompt has no tokens.", "Type some text.")
        if len(ids) > self.max_context:
            raise MicroscopeError(
                "prompt_too_long",
                f"The prompt has {len(ids)} tokens; the model takes at most {self.max_context}.",
                "Shorten it.",
            )
        self._admit(session, 2 * self._run_bytes(len(ids)), f"The prompt of {len(ids)} tokens")
        device = self.loaded.device
        special = torch.tensor([i in self._special for i in ids], device=device)
        self.close(session)
        self._sessions[session] = state = Session(torch.tensor(ids, device=device), special)
        try:
            baseline = self._session(session).baseline
        except BaseException:
            self.close(session)
            raise
        self._freed(state.nbytes)  # computing took about as much for a moment
        return self._view(baseline), compare(baseline.logits, baseline.logits, top=top)

    def close(self, session: str) -> None:
        """Forget a session; unknown names are fine."""
        state = self._sessions.pop(session, None)
        if state is not None:
            nbytes = state.nbytes
            state.forget_runs()
            state.kept = state.generation = None
            self._freed(nbytes)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def cache_bytes(self) -> int:
        """Memory held by all sessions; for the thread that computes."""
        return sum(state.nbytes for state in self._sessions.values())

    def apply(self, session: str, plan: EditPlan, *, top: int = 10, pinned: Sequence[int] = ()) -> Applied:
        """Next-token distribution of a session's prompt under a plan, beside the unpatched one.

        A generation that runs in the session goes on under this plan.

        Raises:
            MicroscopeError: ``no_session``, what :func:`validate_plan` and :func:`bind` raise,
                ``no_such_token`` or ``not_finite``.
        """
        started = time.perf_counter()
        state = self._session(session)
        program = self._bind(plan)
        if any(not 0 <= token < self.loaded.vocab_size for token in pinned):
            raise MicroscopeError("no_such_token", "A pinned token is not in the vocabulary.")
        fingerprint = plan_fingerprint(plan)
        outcome = state.seen.get(fingerprint)
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
        return Applied(fingerprint, comparison, outcome, state.baseline.digest, reused, milliseconds)

    def _bind(self, plan: EditPlan, *, generating: bool = False) -> Program:
        validate_plan(plan, n_layers=self.loaded.n_layers)
        return bind(
            plan,
            family=self.loaded.family,
            n_layers=self.loaded.n_layers,
            saes=self._saes,
            adapters=self._adapters,
            generating=generating,
        )

    def _compute(self, state: Session, fingerprint: str, program: Program) -> Outcome:
        run, layer, position = self._run(state, program)
        outcome = Outcome(run.logits, run.effects(), layer, position)
        state.seen[fingerprint] = outcome
        if len(state.seen) > _SEEN_PER_SESSION:
            state.seen.popitem(last=False)
        return outcome

    def _run(self, state: Session, program: Program) -> tuple[PromptRun, int, int]:
        """The prompt's run under a program, from the nearest run at hand, and where computing began."""
        fingerprint = plan_fingerprint(program.edits)
        known = state.runs.get(fingerprint)
        if known is not None:
            state.runs.move_to_end(fingerprint)
            return known, -1, -1
        self._make_room(self._run_bytes(len(state.baseline)))
        references = (state.baseline, *state.runs.values())
        replayed = replay(self._runner, references, program, self._saes)
        run = replayed.run
        state.changed()  # encodings may have been added, too
        # A change may be infinite where a norm behind it makes the output finite again.
        for values in (run.logits, *(effect.sizes for effect in run.effects())):
            _require_finite(values)
        if replayed.first_layer >= 0:
            state.runs[fingerprint] = run
            while len(state.runs) > _RUNS_PER_SESSION:
                state.runs.popitem(last=False)
            self._make_room()
        return run, replayed.first_layer, replayed.first_position

    def _run_bytes(self, rows: int) -> int:
        """What a run of so many positions holds with all its states."""
        return rows * bytes_per_position(self.loaded.config, self.loaded.dtype.itemsize)

    def _admit(self, session: str, need: int, what: str) -> None:
        """Make room for what a session is about to hold.

        Raises:
            MicroscopeError: ``session_too_big``; it cannot be held, whatever other sessions give up.
        """
        pinned = sum(
            state.claimed
            for name, state in self._sessions.items()
            if state.generation is not None and name != session
        )
        free = min(self._cache_limit, bytes_free(self.loaded.device) + self.cache_bytes) - pinned
        if need > free:
            beside = " beside the texts that are being written" if pinned else ""
            raise MicroscopeError(
                "session_too_big",
                f"{what} needs {need / 1e9:.1f} GB while it is open; "
                f"sessions may take {max(0, free) / 1e9:.1f} GB{beside}.",
                "Shorten it, or give live sessions more memory.",
            )
        self._make_room(need)

    def _make_room(self, need: int = 0) -> None:
        """Let go of what can be made again until the budget holds ``need`` bytes more, of sessions that rested longest first.

        Patched runs go before unpatched ones; the session used last keeps its unpatched run.
        """
        excess = sum(state.claimed for state in self._sessions.values()) + need - self._cache_limit
        resting = list(self._sessions.values())
        patched, unpatched = ((s, s.forget_runs) for s in resting), ((s, s.rest) for s in resting[:-1])
        for state, give_up in itertools.chain(patched, unpatched):
            if excess <= 0:
                return
            held, claimed = state.nbytes, state.claimed
            give_up()
            self._freed(held - state.nbytes)
            excess -= claimed - state.claimed

    def _freed(self, nbytes: int) -> None:
        """Memory was let go: give it back to the system once it is much, for allocators keep it."""
        self._garbage += nbytes
        if self._garbage < _TRIM_BYTES:
            return
        self._garbage = 0
        trim_heap()
        if self.loaded.device.type == "cuda":
            torch.cuda.empty_cache()

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
        state = self._session(session)
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
        in_prompt, written = self._run_bytes(len(state.baseline)), self._run_bytes(max_tokens)
        need = 2 * (2 * in_prompt + written)
        self._admit(session, need, f"A text of {max_tokens} tokens behind the prompt")
        empty = self._bind(EditPlan())
        columns = [Continuation(self._runner, state.baseline, empty, self._saes) for _ in range(2)]
        ends = self.loaded.config.eos_token_id
        ends = ends if isinstance(ends, list) else [ends, self.loaded.tokenizer.eos_token_id]
        generation = Generation(
            base=columns[0],
            patched=columns[1],
            seed=seed,
            temperature=temperature,
            left=max_tokens,
            limit=self.max_context,
            decode=self.loaded.texts.so_far,
            special=self._special.__contains__,
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
        generation = self._session(session).generation
        if generation is None:
            raise MicroscopeError("no_generation", "Nothing is being generated.", "Start a generation first.")
        self._sessions[session].changed()
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
        state = self._sessions.get(session)
        if state is not None:
            state.generation = None
            state.changed()

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
        state = self._session(session)
        found = self._attached(sae)
        with torch.inference_mode():
            codes = found.encode(state.baseline.residuals[Site.parse(found.config.site).layer])
            values = codes.values * self._ordinary(found, state.baseline)[:, None]
            codes = codes._replace(values=values)
            for index in indices:
                found.check_feature(index)
            chosen = list(indices) or _strongest(codes.values, codes.indices, found.config.n_latents, top)
            return [(i, feature_values(codes, i).tolist()) for i in chosen]

    def left_out(self, session: str, sae: str) -> list[int]:
        """Positions of a session's prompt that the token filter of an attached SAE leaves out.

        Raises:
            MicroscopeError: ``no_session`` or ``sae_not_attached``.
        """
        kept = self._ordinary(self._attached(sae), self._session(session).baseline)
        return (~kept).nonzero()[:, 0].tolist()

    def read_positions(self, session: str, plan: EditPlan) -> tuple[str, list[float]]:
        """How far a plan moves the next-token distribution at every position of a session's prompt.

        Returns:
            The plan's fingerprint and KL(base ‖ patched) in nats per position, exactly 0 in front of the
            first row that the plan changes.

        Raises:
            MicroscopeError: what :meth:`apply` raises.
        """
        state = self._session(session)
        program = self._bind(plan)
        run, _, _ = self._run(state, program)
        run = run.complete(self._runner)
        top, base = run.layers[-1].edited, state.baseline.layers[-1].edited
        kl = torch.zeros(len(base), dtype=torch.float64, device=base.device)
        with torch.inference_mode():
            changed = (top != base).any(1) | bool(program.head)
            for rows in changed.nonzero()[:, 0].split(_HEAD_ROWS):
                heads = ((base, ()), (top, program.head))
                p, q = (self._runner.head(x[rows], deltas).double().log_softmax(1) for x, deltas in heads)
                kl[rows] = (p.exp() * (p - q)).sum(1).clamp_min(0)
        _require_finite(kl)
        return plan_fingerprint(plan), kl.tolist()

    # --- inside ---------------------------------------------------------------------------------------

    def _session(self, name: str) -> Session:
        state = self._sessions.get(name)
        if state is None:
            raise MicroscopeError("no_session", "The session is not open here.", "Open it again.")
        self._sessions.move_to_end(name)
        if state.kept is None:
            self._make_room(self._run_bytes(len(state.tokens)))
            state.kept = run_baseline(self._runner, state.tokens, state.special)
            state.changed()
        return state

    def _attached(self, sae: str) -> SparseAutoencoder:
        found = self._saes.get(sae)
        if found is None:
            raise MicroscopeError(
                "sae_not_attached", f"The SAE {sae[:12]} is not attached to this model.", "Attach it first."
            )
        return found

    def _ordinary(self, sae: SparseAutoencoder, baseline: PromptRun) -> Tensor:
        return sae.config.token_filter.keep(baseline.special, self._norms(baseline, sae.config.site))

    def _settle_filter(self, sae: SparseAutoencoder) -> None:
        """Give an SAE that came without a token filter one that follows from this model and the SAE's site."""
        config = sae.config
        if not config.token_filter.known:
            if config.site not in self._derived:
                self._derived[config.site] = filter_on_model(self.loaded, config.site)
            config.token_filter = self._derived[config.site]

    def _sinks(self, baseline: PromptRun) -> Tensor:
        """Attention sinks of a prompt itself, whoever has attached what: 8× its median norm half-way up.

        What an SAE leaves out, and with it the edits of its features, is the SAE's own affair; see
        :meth:`read_features`.
        """
        norms = self._norms(baseline, f"resid_post.{self.loaded.n_layers // 2}")
        return norms > SINK_FACTOR * norms.median()

    @staticmethod
    def _norms(baseline: PromptRun, site: str) -> Tensor:
        return baseline.residuals[Site.parse(site).layer].float().norm(dim=1)

    def _view(self, baseline: PromptRun) -> PromptView:
        ids = baseline.tokens.tolist()
        sink = self._sinks(baseline)
        texts = tuple(self.loaded.texts.each(ids))
        return PromptView(tuple(ids), texts, tuple(baseline.special.tolist()), tuple(sink.tolist()))


def _require_finite(values: Tensor) -> None:
    """Raises :class:`MicroscopeError` ``not_finite``."""
    if not bool(torch.isfinite(values).all()):
        raise MicroscopeError(
            "not_finite", "The patched model's output is not finite.", "Lower the strength of the edits."
        )


def _strongest(values: Tensor, indices: Tensor, latents: int, count: int) -> list[int]:
    """Features by their highest activation, strongest first, silent ones left out."""
    peak = torch.zeros(latents, device=values.device).scatter_reduce_(
        0, indices.flatten(), values.flatten(), "amax"
    )
    best = peak.topk(min(count, latents))
    return best.indices[best.values > 0].tolist()
