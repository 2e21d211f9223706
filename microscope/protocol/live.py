"""Messages of a live session. A browser sends them to the portal, and the portal passes them to the resident worker.

What the portal passes on unchanged is the same struct on both ways; a message that only one of the two
ways has says so. On the WebSocket every frame is one JSON object whose ``type`` names the message; how
they travel to the resident worker is in :mod:`microscope.protocol.frames`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from microscope.errors import MicroscopeError
from microscope.graphs import Attended, Graph, GraphTarget, GraphUpdate
from microscope.params import EditPlan
from microscope.params.fields import Integer
from microscope.params.provenance import (
    DEFAULT_HOPS,
    DEFAULT_PARENTS,
    DEFAULT_SHOWN,
    MAX_HOPS,
    MAX_PARENTS,
    MAX_SHOWN,
)
from microscope.protocol.values import (
    FeatureValues,
    GeneratedPiece,
    ModelInfo,
    PromptToken,
    Receipt,
    Timings,
    TokenShift,
)

MAX_PROMPT_CHARACTERS = 100_000
MAX_PINNED = 1000
MAX_TOP_TOKENS = 200
MAX_TOP_FEATURES = 1000
MAX_GRAPH_SAES = 256


class Message(msgspec.Struct, kw_only=True, tag_field="type", frozen=True):
    """Any message."""


class Request(Message, frozen=True, forbid_unknown_fields=True):
    """Anything that is asked; fields nobody knows are an error, so that a typo is noticed."""


# --- requests -----------------------------------------------------------------------------------------


class Ping(Request, tag="ping", frozen=True):
    """Answered with ``pong``."""


class Open(Request, tag="open", frozen=True):
    """Start a session with a prompt; answered with ``opened``. A second one replaces the first."""

    prompt: str
    top: Integer = 10

    def check(self) -> None:
        """Raises :class:`MicroscopeError` ``prompt_too_long`` or ``bad_top``."""
        if len(self.prompt) > MAX_PROMPT_CHARACTERS:
            raise MicroscopeError(
                "prompt_too_long",
                f"The prompt has {len(self.prompt)} characters; {MAX_PROMPT_CHARACTERS} is the limit.",
            )
        _check_top(self.top)


class Apply(Request, tag="apply", frozen=True):
    """The complete plan. ``rev`` must rise; only the newest one is sure to be answered with ``result``."""

    rev: Integer
    plan: EditPlan
    top: Integer = 10
    pinned: Annotated[tuple[Integer, ...], msgspec.Meta(max_length=MAX_PINNED)] = ()

    def check(self) -> None:
        """Raises :class:`MicroscopeError` ``bad_top``."""
        _check_top(self.top)


class ReadFeatures(Request, tag="read_features", frozen=True):
    """Activations on the unpatched prompt: of ``indices``, or of the ``top`` features."""

    sae: str
    indices: tuple[Integer, ...] = ()
    top: Integer = 20

    def check(self) -> None:
        """Raises :class:`MicroscopeError` ``bad_top``."""
        if not 1 <= self.top <= MAX_TOP_FEATURES or len(self.indices) > MAX_TOP_FEATURES:
            raise MicroscopeError("bad_top", f"Ask for 1 to {MAX_TOP_FEATURES} features.")


class ReadPositions(Request, tag="read_positions", frozen=True):
    """How far a plan moves the next-token distribution at every position; answered with ``position_shifts``."""

    plan: EditPlan


class Generate(Request, tag="generate", frozen=True):
    """Continue the prompt, unpatched and under a plan. An ``apply`` changes the plan from the next token on.

    ``run`` is repeated in every answer; a new one replaces the one before. A temperature of 0 takes the
    likeliest token; equal seeds give equal texts.
    """

    run: Integer
    plan: EditPlan
    seed: Integer = 0
    temperature: float = 0.0
    max_tokens: Integer = 64


class StopGeneration(Request, tag="stop_generation", frozen=True):
    """End the generation; answered with ``generation_ended``."""


class ReadProvenance(Request, tag="read_provenance", frozen=True):
    """Explain a target on the unpatched prompt: ``graph_begun``, then ``graph_update``s, then ``graph_ended``.

    ``run`` is repeated in every answer; a new one replaces the one before. ``saes`` are the fingerprints of
    those whose latents are nodes, the target's own among them.
    """

    run: Integer
    target: GraphTarget
    saes: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_GRAPH_SAES)] = ()
    hops: Integer = DEFAULT_HOPS
    parents: Integer = DEFAULT_PARENTS
    shown: Integer = DEFAULT_SHOWN
    verify: bool = True

    def check(self) -> None:
        """Raises :class:`MicroscopeError` ``bad_graph_size``."""
        for name, most in (("hops", MAX_HOPS), ("parents", MAX_PARENTS), ("shown", MAX_SHOWN)):
            if not 1 <= getattr(self, name) <= most:
                raise MicroscopeError(
                    "bad_graph_size", f"{name} is {getattr(self, name)}.", f"Use 1 to {most}."
                )


class StopProvenance(Request, tag="stop_provenance", frozen=True):
    """End the graph that is being computed; answered with ``graph_ended``."""


class ReadAttended(Request, tag="read_attended", frozen=True):
    """Why one head attends from ``query`` to ``key`` on the unpatched prompt; answered with ``attended``.

    ``saes`` are the fingerprints of those whose features may be contributors, ``top`` is the length of the lists.
    """

    layer: Integer
    head: Integer
    query: Integer
    key: Integer
    saes: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_GRAPH_SAES)] = ()
    top: Integer = 20

    def check(self) -> None:
        """Raises :class:`MicroscopeError` ``bad_top``."""
        _check_top(self.top)


# --- answers ------------------------------------------------------------------------------------------


class Failure(Message, tag="failure", frozen=True):
    """Something was not done. ``rev`` repeats that of the apply it is about; the socket stays usable."""

    code: str
    message: str
    hint: str = ""
    rev: int | None = None


class Opened(Message, tag="opened", frozen=True):
    """The session is open. ``reopened`` when the portal did it by itself after the worker came back.

    ``path`` says how the model is run, in the words of ``Running``, and ``path_reason`` why it is no faster one.
    """

    session: str
    prompt: list[PromptToken]
    next: list[TokenShift]
    entropy: float
    milliseconds: float
    reopened: bool = False
    path: str = "fast"
    path_reason: str = ""


class Computed(Message, tag="computed", frozen=True):
    """Next-token distribution under the plan of ``rev``, as the resident worker answers an ``apply``.

    The tokens are the union of the top ones of both, most likely first. ``kl`` is KL(base ‖ patched) in nats
    over the whole vocabulary, entropies are in nats.
    """

    session: str
    rev: int
    tokens: list[TokenShift]
    kl: float
    entropy_base: float
    entropy_patched: float
    receipt: Receipt
    timings: Timings


class Result(Computed, tag="result", frozen=True):
    """Next-token distribution under the plan of ``rev``, base beside patched, with its receipt.

    ``server_ms`` is the time between the frame's arrival and this answer.
    """

    server_ms: float

    @classmethod
    def of(cls, computed: Computed, server_ms: float) -> Result:
        """What the browser is told of an answer of the resident worker."""
        return cls(**msgspec.structs.asdict(computed), server_ms=server_ms)


class Queued(Message, tag="queued", frozen=True):
    """Others come first: ``ahead`` turns before the prompt is opened, or before the plan of ``rev`` is computed."""

    ahead: int
    rev: int | None = None


class Superseded(Message, tag="superseded", frozen=True):
    """The revision was not computed: a newer one, or another prompt, arrived before."""

    rev: int


class Features(Message, tag="features", frozen=True):
    """Activations of features at every token of the prompt, and the tokens the SAE's own filter leaves out."""

    session: str
    sae: str
    features: list[FeatureValues]
    left_out: list[int] = []


class PositionShifts(Message, tag="position_shifts", frozen=True):
    """KL(base ‖ patched) in nats of the next-token distribution at every position of the prompt."""

    session: str
    plan: str
    kl: list[float]


class Generated(Message, tag="generated", frozen=True):
    """The next token of both columns, null for one that has ended. ``plan`` is the fingerprint in force."""

    session: str
    run: int
    number: int
    plan: str
    base: GeneratedPiece | None
    patched: GeneratedPiece | None


class GenerationEnded(Message, tag="generation_ended", frozen=True):
    """``reason`` is one of tokens, end_of_text, context, stopped, replaced, failed, lost."""

    run: int
    reason: str


class GraphBegun(Message, tag="graph_begun", frozen=True):
    """The first picture of a graph: tokens, target, exact components, nodes and edges of the first hop."""

    session: str
    run: int
    graph: Graph


class GraphProgress(Message, tag="graph_update", frozen=True):
    """What the graph of ``run`` gained: a further hop, or verdicts."""

    session: str
    run: int
    update: GraphUpdate


class GraphEnded(Message, tag="graph_ended", frozen=True):
    """``reason`` is one of done, stopped, replaced, failed, lost; what was sent before stays true."""

    run: int
    reason: str


class AttentionExplained(Message, tag="attended", frozen=True):
    """Why a head attends from one position to another."""

    session: str
    attended: Attended


class Attached(Message, tag="attached", frozen=True):
    """An SAE that ``POST /saes/{id}/attach`` left being read is there; if it failed, ``code`` says why."""

    sae: str
    code: str = ""
    message: str = ""
    hint: str = ""


# --- from the portal alone ----------------------------------------------------------------------------


class Pong(Message, tag="pong", frozen=True):
    """The socket works."""


class ResidentState(Message, tag="state", frozen=True):
    """Whether the model can be asked, and what to do when not. Sent at once and whenever it changes.

    ``state`` is one of starting, ready, failed, stopped, lost. After ``lost`` and ``ready`` the portal
    opens the session again by itself and applies the last plan.
    """

    state: str
    code: str = ""
    message: str = ""
    hint: str = ""
    memory_bytes: int | None = None
    model: ModelInfo | None = None


LiveRequest = (
    Open
    | Apply
    | ReadFeatures
    | ReadPositions
    | Generate
    | StopGeneration
    | ReadProvenance
    | StopProvenance
    | ReadAttended
    | Ping
)
LiveAnswer = (
    ResidentState
    | Attached
    | Opened
    | Result
    | Queued
    | Superseded
    | Features
    | PositionShifts
    | Generated
    | GenerationEnded
    | GraphBegun
    | GraphProgress
    | GraphEnded
    | AttentionExplained
    | Failure
    | Pong
)


def _check_top(top: int) -> None:
    if not 1 <= top <= MAX_TOP_TOKENS:
        raise MicroscopeError("bad_top", f"top is {top}; use 1 to {MAX_TOP_TOKENS}.")
