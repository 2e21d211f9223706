"""What is kept of people's prompts, and how much of it can be made again."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.graphs import Graph, GraphUpdate
from microscope.heap import trim_heap
from microscope.live.generate import Generation
from microscope.live.run import PromptRun, bytes_held, run_baseline, states_bytes
from microscope.models import BlockRunner, LoadedModel
from microscope.models.memory import bytes_free
from microscope.patching.apply import EditEffect

# Freed memory is given back to the system in portions of so much.
_TRIM_BYTES = 64 * 2**20


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
    """A prompt, its tokens ``[positions]``, and what was computed for it.

    ``unpatched`` is the run without a plan, None while it is evicted: it is made again when next needed.
    ``outcomes`` are answers and ``runs`` whole runs, both by fingerprint of the plan.
    """

    tokens: Tensor
    special: Tensor
    prompt: str = ""
    unpatched: PromptRun | None = None
    outcomes: OrderedDict[str, Outcome] = field(default_factory=OrderedDict)
    runs: OrderedDict[str, PromptRun] = field(default_factory=OrderedDict)
    generation: Generation | None = None
    reserved: int = 0  # what it may come to hold while a text is being written
    graph: Iterator[Graph | GraphUpdate] | None = None  # the pieces still to come
    graph_bytes: int = 0  # what that takes, apart from what sessions may keep
    _nbytes: int | None = None  # its memory, while nothing changes it

    @property
    def baseline(self) -> PromptRun:
        """The unpatched run of a session that has it."""
        assert self.unpatched is not None
        return self.unpatched

    def evict_runs(self) -> None:
        """Let go of all that plans made."""
        self.changed()
        self.runs.clear()
        self.outcomes.clear()

    def evict(self) -> None:
        """Let go of everything but the prompt; a text that is being written keeps what it needs."""
        self.evict_runs()
        if self.generation is None:
            self.unpatched = None

    def changed(self) -> None:
        """Its memory must be counted anew: called by everything that changes what it holds."""
        self._nbytes = None

    @property
    def nbytes(self) -> int:
        """Memory held; what runs share counts once."""
        if self._nbytes is None:
            self._nbytes = self.measure()
        return self._nbytes

    @property
    def claimed(self) -> int:
        """Memory held, or kept free for the text that is being written, whichever is more."""
        return self.nbytes if self.generation is None else max(self.nbytes, self.reserved)

    def measure(self) -> int:
        """Count the memory held."""
        return bytes_held(self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.tokens, self.special)
        for run in (*(() if self.unpatched is None else (self.unpatched,)), *self.runs.values()):
            yield from run.tensors()
        for outcome in self.outcomes.values():
            yield outcome.logits
            yield from (effect.sizes for effect in outcome.effects)
        if self.generation is not None:
            yield from self.generation.tensors()


class SessionCache:
    """All sessions of a model, within a budget of memory.

    Above the budget the least recently used give up their patched runs, then their unpatched one.

    Args:
        limit: bytes that all of them may hold.
    """

    def __init__(self, loaded: LoadedModel, runner: BlockRunner, limit: int) -> None:
        self._loaded, self._runner = loaded, runner
        self._fixed_bytes, self._row_bytes = states_bytes(runner, loaded.device)
        self.limit = limit
        self.by_name: OrderedDict[str, Session] = OrderedDict()  # least recently used first
        self._garbage = 0  # bytes let go since memory was last given back

    def add(self, name: str, session: Session) -> PromptRun:
        """Open a session under a name, in place of one that had it; its unpatched run."""
        self.close(name)
        self.by_name[name] = session
        try:
            baseline = self.get(name).baseline
        except BaseException:
            self.close(name)
            raise
        self._freed(session.nbytes)  # computing took about as much for a moment
        return baseline

    def get(self, name: str) -> Session:
        """An open session with its unpatched run; raises :class:`MicroscopeError` ``no_session``."""
        session = self.by_name.get(name)
        if session is None:
            raise MicroscopeError("no_session", "The session is not open here.", "Open it again.")
        self.by_name.move_to_end(name)
        if session.unpatched is None:
            self.make_room(self.run_bytes(len(session.tokens)))
            session.unpatched = run_baseline(self._runner, session.tokens, session.special)
            session.changed()
        return session

    def close(self, name: str) -> None:
        """Forget a session; unknown names are fine."""
        session = self.by_name.pop(name, None)
        if session is not None:
            nbytes = session.nbytes
            session.evict_runs()
            session.unpatched = session.generation = session.graph = None
            self._freed(nbytes)

    def __len__(self) -> int:
        return len(self.by_name)

    @property
    def nbytes(self) -> int:
        """Memory held by all sessions; for the thread that computes."""
        return sum(session.nbytes for session in self.by_name.values())

    def run_bytes(self, rows: int) -> int:
        """What a run of so many positions holds with all its states."""
        return self._fixed_bytes + rows * self._row_bytes

    def admit(self, name: str, need: int, what: str) -> None:
        """Make room for what a session is about to hold.

        Raises:
            MicroscopeError: ``session_too_big``; it cannot be held, whatever other sessions give up.
        """
        pinned = sum(
            session.claimed
            for other, session in self.by_name.items()
            if session.generation is not None and other != name
        )
        free = min(self.limit, bytes_free(self._loaded.device) + self.nbytes) - pinned
        if need > free:
            beside = " beside the texts that are being written" if pinned else ""
            raise MicroscopeError(
                "session_too_big",
                f"{what} needs {need / 1e9:.1f} GB while it is open; "
                f"sessions may take {max(0, free) / 1e9:.1f} GB{beside}.",
                "Shorten it, or give live sessions more memory.",
            )
        self.make_room(need)

    def make_room(self, need: int = 0) -> None:
        """Evict what can be made again until the budget holds ``need`` bytes more.

        Patched runs go before unpatched ones; the session used last keeps its unpatched run.
        """
        excess = sum(session.claimed for session in self.by_name.values()) + need - self.limit
        oldest = list(self.by_name.values())
        patched, unpatched = ((s, s.evict_runs) for s in oldest), ((s, s.evict) for s in oldest[:-1])
        for session, evict in itertools.chain(patched, unpatched):
            if excess <= 0:
                return
            held, claimed = session.nbytes, session.claimed
            evict()
            self._freed(held - session.nbytes)
            excess -= claimed - session.claimed

    def _freed(self, nbytes: int) -> None:
        """Memory was let go: give it back to the system once it is much, for allocators keep it."""
        self._garbage += nbytes
        if self._garbage < _TRIM_BYTES:
            return
        self._garbage = 0
        trim_heap()
        if self._loaded.device.type == "cuda":
            torch.cuda.empty_cache()
