"""What browsers and the portal say to each other over WebSockets. ``ws_schema.json`` is made from this.

Every frame is one JSON object whose ``type`` names the message.
"""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import msgspec

from apps.jobs.summary import EventSummary, JobSummary
from microscope.params import EditPlan
from microscope.params.fields import Integer
from microscope.params.schema import schema_components
from worker.protocol import (
    FeatureValues,
    GeneratedPiece,
    ModelInfo,
    PromptToken,
    Receipt,
    Timings,
    TokenShift,
)

MAX_PROMPT = 100_000
MAX_PINNED = 1000


class Message(msgspec.Struct, kw_only=True, tag_field="type", frozen=True):
    """Any message."""


class ClientMessage(Message, frozen=True, forbid_unknown_fields=True):
    """Anything a browser sends; fields nobody knows are an error, so that a typo is noticed."""


# --- both sockets -------------------------------------------------------------------------------------


class Ping(ClientMessage, tag="ping", frozen=True):
    """Answered with ``pong``."""


class Pong(Message, tag="pong", frozen=True):
    """The socket works."""


class Failure(Message, tag="failure", frozen=True):
    """Something was not done. ``rev`` repeats that of the apply it is about; the socket stays usable."""

    code: str
    message: str
    hint: str = ""
    rev: int | None = None


# --- /ws/live/<model>/: from the browser ----------------------------------------------------------------


class Open(ClientMessage, tag="open", frozen=True):
    """Start a session with a prompt; answered with ``opened``. A second one replaces the first."""

    prompt: str
    top: Integer = 10


class Apply(ClientMessage, tag="apply", frozen=True):
    """The complete plan. ``rev`` must rise; only the newest one is sure to be answered with ``result``."""

    rev: Integer
    plan: EditPlan
    top: Integer = 10
    pinned: Annotated[tuple[Integer, ...], msgspec.Meta(max_length=MAX_PINNED)] = ()


class ReadFeatures(ClientMessage, tag="read_features", frozen=True):
    """Activations on the unpatched prompt: of ``indices``, or of the ``top`` features."""

    sae: str
    indices: tuple[Integer, ...] = ()
    top: Integer = 20


class ReadPositions(ClientMessage, tag="read_positions", frozen=True):
    """How far a plan moves the next-token distribution at every position; answered with ``position_shifts``."""

    plan: EditPlan


class Generate(ClientMessage, tag="generate", frozen=True):
    """Continue the prompt, unpatched and under a plan. An ``apply`` changes the plan from the next token on.

    ``run`` is repeated in every answer; a new one replaces the one before. A temperature of 0 takes the
    likeliest token; equal seeds give equal texts.
    """

    run: Integer
    plan: EditPlan
    seed: Integer = 0
    temperature: float = 0.0
    max_tokens: Integer = 64


class StopGeneration(ClientMessage, tag="stop_generation", frozen=True):
    """End the generation; answered with ``generation_ended``."""


# --- /ws/live/<model>/: to the browser ------------------------------------------------------------------


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


class Attached(Message, tag="attached", frozen=True):
    """An SAE that ``POST /saes/{id}/attach`` left being read is there; if it failed, ``code`` says why."""

    sae: str
    code: str = ""
    message: str = ""
    hint: str = ""


class Opened(Message, tag="opened", frozen=True):
    """The session is open. ``reopened`` when the portal did it by itself after the worker came back."""

    session: str
    prompt: list[PromptToken]
    next: list[TokenShift]
    entropy: float
    milliseconds: float
    reopened: bool = False


class Result(Message, tag="result", frozen=True):
    """Next-token distribution under the plan of ``rev``, base beside patched, with its receipt.

    ``server_ms`` is the time between the frame's arrival and this answer.
    """

    session: str
    rev: int
    tokens: list[TokenShift]
    kl: float
    entropy_base: float
    entropy_patched: float
    receipt: Receipt
    timings: Timings
    server_ms: float


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


# --- /ws/jobs/ -----------------------------------------------------------------------------------------


class Subscribe(ClientMessage, tag="subscribe", frozen=True):
    """Follow the jobs of a project; answered with ``snapshot``. Say it again to get a fresh snapshot."""

    project: UUID


class Unsubscribe(ClientMessage, tag="unsubscribe", frozen=True):
    """Stop following a project."""

    project: UUID


class Watch(ClientMessage, tag="watch", frozen=True):
    """Follow log lines and curves of one job; answered with the events after ``after``."""

    job: UUID
    after: Integer = 0


class Unwatch(ClientMessage, tag="unwatch", frozen=True):
    """Stop following a job."""

    job: UUID


class Snapshot(Message, tag="snapshot", frozen=True):
    """All unfinished jobs of a project and its newest finished ones, newest first."""

    project: UUID
    jobs: list[JobSummary]


class JobChanged(Message, tag="job", frozen=True):
    """A job as it is now.

    Durable changes raise ``job.seq`` by one: after a gap, subscribe again. A ``transient`` one is
    progress in between and repeats the number; missing it does no harm.
    """

    job: JobSummary
    transient: bool = False


class JobEvents(Message, tag="events", frozen=True):
    """Events of a watched job. When the first is not ``last seen + 1``, watch again from the last seen."""

    job: UUID
    events: list[EventSummary]
    last: int


LiveRequest = Open | Apply | ReadFeatures | ReadPositions | Generate | StopGeneration | Ping
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
    | Failure
    | Pong
)
JobsRequest = Subscribe | Unsubscribe | Watch | Unwatch | Ping
JobsAnswer = Snapshot | JobChanged | JobEvents | Failure | Pong


TICKET = "a ticket of POST /api/v1/ws-tickets, for clients with an API token"
LIVE_QUERY = {
    "ticket": TICKET,
    "page": "a UUID the client makes up: connecting again under it takes over the place it had, however full it is",
}
JOBS_QUERY = {"ticket": TICKET, "project": "id of a project to subscribe to at once"}
CLOSE_CODES = {
    "4401": "not signed in, or no longer",
    "4403": "your role does not allow it",
    "4404": "no such model or project, or not for you",
    "4408": "another connection of the same page took the place of this one",
    "4429": "all live sessions of the person or of the project are open; the failure before says how many",
}


def schema() -> dict[str, Any]:
    """JSON Schema of both sockets: what each side may say, and the components."""
    unions = {
        "LiveRequest": LiveRequest,
        "LiveAnswer": LiveAnswer,
        "JobsRequest": JobsRequest,
        "JobsAnswer": JobsAnswer,
    }
    schemas, components = schema_components(unions.values(), "#/$defs/{name}")
    definitions = {**components, **dict(zip(unions, schemas, strict=True))}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "WebSocket messages of the portal",
        "sockets": {
            "/ws/live/{model}/": {"request": "LiveRequest", "answer": "LiveAnswer", "query": LIVE_QUERY},
            "/ws/jobs/": {"request": "JobsRequest", "answer": "JobsAnswer", "query": JOBS_QUERY},
        },
        "close_codes": CLOSE_CODES,
        "$defs": dict(sorted(definitions.items())),
    }
