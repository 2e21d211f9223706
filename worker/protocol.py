"""The messages between the portal and a resident model worker.

Frames on the stream are a 4-byte big-endian length followed by one msgpack map. Every request carries
an ``id``; the reply repeats it. ``apply`` requests of one session carry a rising ``rev``: when a newer
one has arrived before an older one was computed, the older is answered with ``superseded``.
Imports neither Django nor torch.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec

from microscope.params import EditPlan
from microscope.params.fields import Integer

PROTOCOL_VERSION = 4
MAX_FRAME_BYTES = 16 * 2**20
# Of somebody who has not said yet who they are.
MAX_HELLO_BYTES = 4096


Count = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class ProtocolError(Exception):
    """The peer sent something that is no message of this protocol."""


# --- requests -----------------------------------------------------------------------------------------


class Request(msgspec.Struct, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """Anything the portal asks of a resident worker."""

    id: Integer


class Hello(Request, tag="hello"):
    """First message of a connection. ``token`` is the shared secret of TCP listeners."""

    protocol: int = PROTOCOL_VERSION
    token: str = ""


class AttachSae(Request, tag="attach_sae"):
    """Load an SAE from a folder the worker can read; ``sae`` is the fingerprint it must have.

    After ``patience`` seconds it is answered with ``attaching``, the reading goes on whoever hangs up, and its end is
    told to every connection. Without patience the answer comes at the end.
    """

    sae: str
    path: str
    patience: float | None = None


class AttachAdapter(Request, tag="attach_adapter"):
    """Load a low-rank adapter from a folder the worker can read; ``adapter`` is the fingerprint it must have."""

    adapter: str
    path: str


class OpenSession(Request, tag="open_session"):
    """Tokenise a prompt, run it once unpatched, and keep its residuals and keys/values."""

    session: str
    prompt: str
    top: Count = 10


class Apply(Request, tag="apply"):
    """The complete edit plan of a session; answered with the next-token distribution."""

    session: str
    rev: Integer
    plan: EditPlan
    top: Count = 10
    pinned: tuple[Integer, ...] = ()


class ReadFeatures(Request, tag="read_features"):
    """Activations of an SAE's features on a session's unpatched prompt.

    With ``indices`` those features; without, the ``top`` features by their highest activation.
    """

    session: str
    sae: str
    indices: tuple[Integer, ...] = ()
    top: Count = 20


class Generate(Request, tag="generate"):
    """Continue a session's prompt, unpatched and under a plan, token by token.

    Answered with one :class:`Generated` per token and a :class:`GenerationEnded`. An ``apply`` of the same
    session changes the plan from the next token on. A second one replaces the first.
    """

    session: str
    plan: EditPlan
    seed: Integer = 0
    temperature: float = 0.0
    max_tokens: Integer = 64


class StopGeneration(Request, tag="stop_generation"):
    """End the session's generation, if one runs."""

    session: str


class ReadPositions(Request, tag="read_positions"):
    """How far the next-token distribution moves at every position of the prompt under a plan."""

    session: str
    plan: EditPlan


class CloseSession(Request, tag="close_session"):
    session: str


class Ping(Request, tag="ping"):
    """Answered with :class:`Status` at once, even while a forward pass runs."""


# --- replies ------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, kw_only=True, tag_field="type"):
    id: int


class ModelInfo(msgspec.Struct, kw_only=True, frozen=True):
    """What is loaded. ``parameters`` counts weights; ``dtype`` is the arithmetic of the residual stream."""

    reference: str
    fingerprint: str
    family: str
    dtype: str
    n_layers: int
    d_model: int
    vocab_size: int
    max_context: int
    parameters: int


class Welcome(Reply, tag="welcome"):
    protocol: int
    model: ModelInfo


class Attached(Reply, tag="attached"):
    sae: str
    site: str
    n_latents: int


class Attaching(Reply, tag="attaching"):
    """The SAE is still being read."""

    sae: str


class AttachEnded(Reply, tag="attach_ended"):
    """To every connection, with an ``id`` of 0: an SAE somebody was told to wait for is there, or ``code`` says why
    not."""

    sae: str
    code: str = ""
    message: str = ""
    hint: str = ""


class AdapterAttached(Reply, tag="adapter_attached"):
    """``modules`` is how many modules the adapter changes, ``rank`` the largest of its ranks."""

    adapter: str
    modules: int
    rank: int


class PromptToken(msgspec.Struct, kw_only=True, frozen=True):
    """One token of the prompt: whether it is special, and whether its norm is that of an attention sink.

    Edits leave such tokens alone unless asked; where the line is, the token filter of each SAE says.
    """

    token: int
    text: str
    special: bool = False
    sink: bool = False


class TokenShift(msgspec.Struct, kw_only=True, frozen=True):
    """Probability of one next token, unpatched and patched."""

    token: int
    text: str
    base: float
    patched: float


class Opened(Reply, tag="opened"):
    session: str
    prompt: list[PromptToken]
    next: list[TokenShift]
    entropy: float
    milliseconds: float


class EditReceipt(msgspec.Struct, kw_only=True, frozen=True):
    """What one edit did: the positions where it changed the stream, and by how much at most (L2 norm)."""

    edit: int
    noop: bool
    positions: list[int]
    max_delta: float


class Receipt(msgspec.Struct, kw_only=True, frozen=True):
    """Proof of what was applied, so that a silent no-op cannot look like a result.

    ``baseline`` is a hash of the unpatched logits, ``reused`` says how the answer was made:
    ``"cache"`` (this very state was seen before), ``"baseline"`` (nothing changed) or ``"computed"``.
    """

    plan: str
    edits: list[EditReceipt]
    baseline: str
    reused: str
    first_layer: int
    first_position: int


class Timings(msgspec.Struct, kw_only=True, frozen=True):
    """Milliseconds spent inside the resident worker."""

    queued: float
    compute: float


class Result(Reply, tag="result"):
    """Next-token distribution under the plan: the union of the top tokens of both, most likely first.

    ``kl`` is KL(base ‖ patched) in nats over the whole vocabulary, entropies are in nats.
    """

    session: str
    rev: int
    tokens: list[TokenShift]
    kl: float
    entropy_base: float
    entropy_patched: float
    receipt: Receipt
    timings: Timings


class GeneratedPiece(msgspec.Struct, kw_only=True, frozen=True):
    """One new token: what it adds to the text, which is nothing inside a character, and its probability."""

    token: int
    text: str
    probability: float


class Generated(Reply, tag="generated"):
    """The next token of both columns, None for one that has ended. ``plan`` is the fingerprint in force."""

    session: str
    number: int
    plan: str
    base: GeneratedPiece | None
    patched: GeneratedPiece | None


class GenerationEnded(Reply, tag="generation_ended"):
    """``reason`` is one of tokens, end_of_text, context, stopped, replaced."""

    session: str
    reason: str


class PositionShifts(Reply, tag="position_shifts"):
    """KL(base ‖ patched) in nats of the next-token distribution at every position of the prompt."""

    session: str
    plan: str
    kl: list[float]


class Queued(Reply, tag="queued"):
    """Sent while a request waits, before its answer: how many turns of others come first."""

    ahead: int


class Superseded(Reply, tag="superseded"):
    """The revision was not computed: a newer one arrived before, or the session was closed."""

    session: str
    rev: int


class FeatureValues(msgspec.Struct, kw_only=True, frozen=True):
    """Activation of one feature at every position of the prompt (0 where silent)."""

    index: int
    values: list[float]


class Features(Reply, tag="features"):
    """Activations at every position, and the positions that the SAE's own token filter leaves out."""

    session: str
    sae: str
    features: list[FeatureValues]
    left_out: list[int] = []


class Done(Reply, tag="done"):
    """Acknowledges a request that returns nothing."""


class Status(Reply, tag="status"):
    """Health: sessions held, bytes of their caches, resident memory of the process, work waiting.

    ``idle_seconds`` is how long nobody has asked for anything but this.
    """

    sessions: int
    cache_bytes: int
    rss_bytes: int
    queued: int
    saes: list[str]
    adapters: list[str] = []
    idle_seconds: float = 0.0


class Failure(Reply, tag="failure"):
    code: str
    message: str
    hint: str = ""


AnyRequest = (
    Hello
    | AttachSae
    | AttachAdapter
    | OpenSession
    | Apply
    | ReadFeatures
    | ReadPositions
    | Generate
    | StopGeneration
    | CloseSession
    | Ping
)
AnyReply = (
    Welcome
    | Attached
    | Attaching
    | AttachEnded
    | AdapterAttached
    | Opened
    | Result
    | Queued
    | Superseded
    | Features
    | PositionShifts
    | Generated
    | GenerationEnded
    | Done
    | Status
    | Failure
)

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(AnyRequest)
_replies = msgspec.msgpack.Decoder(AnyReply)


def encode(message: Request | Reply) -> bytes:
    """One frame: length prefix and body."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


async def read_frame(reader: asyncio.StreamReader, limit: int = MAX_FRAME_BYTES) -> bytes:
    """The next frame's body.

    Raises:
        ProtocolError: the frame announces more bytes than the limit.
        asyncio.IncompleteReadError: the peer closed the stream.
    """
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > limit:
        raise ProtocolError(f"a frame of {size} bytes is above the limit of {limit}")
    return await reader.readexactly(size)


def decode_request(body: bytes) -> AnyRequest:
    """Raises :class:`ProtocolError` when the bytes are no request."""
    try:
        return _requests.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error


def decode_reply(body: bytes) -> AnyReply:
    """Raises :class:`ProtocolError` when the bytes are no reply."""
    try:
        return _replies.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error
