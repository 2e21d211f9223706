"""Messages between the portal and a resident worker, besides those of live sessions."""

from __future__ import annotations

import msgspec

from microscope.protocol import live
from microscope.protocol.live import Message, Request
from microscope.protocol.values import ModelInfo

# A connection between two that name different numbers is refused.
PROTOCOL_VERSION = 6


class Hello(Request, tag="hello", frozen=True):
    """First message of a connection. ``token`` is the shared secret of TCP listeners."""

    protocol: int = PROTOCOL_VERSION
    token: str = ""


class AttachSae(Request, tag="attach_sae", frozen=True):
    """Load an SAE from a folder the worker can read; ``sae`` is the fingerprint it must have.

    After ``wait_seconds`` it is answered with ``attaching``; reading goes on even if the connection ends, and every
    connection is sent ``attached`` when it is done. Without ``wait_seconds`` the answer comes at the end.
    """

    sae: str
    path: str
    wait_seconds: float | None = None


class AttachAdapter(Request, tag="attach_adapter", frozen=True):
    """Load a low-rank adapter from a folder the worker can read; ``adapter`` is the fingerprint it must have."""

    adapter: str
    path: str


class CloseSession(Request, tag="close_session", frozen=True):
    """Forget a session and what it waits for."""


class ReadStatus(Request, tag="read_status", frozen=True):
    """Answered with :class:`Status` at once, even while a forward pass runs."""


class Welcome(Message, tag="welcome", frozen=True):
    """The connection may be used."""

    protocol: int
    model: ModelInfo


class SaeAttached(Message, tag="sae_attached", frozen=True):
    """The SAE is in memory."""

    sae: str
    site: str
    n_latents: int


class Attaching(Message, tag="attaching", frozen=True):
    """The SAE is still being read."""

    sae: str


class AdapterAttached(Message, tag="adapter_attached", frozen=True):
    """``modules`` is how many modules the adapter changes, ``rank`` the largest of its ranks."""

    adapter: str
    modules: int
    rank: int


class Done(Message, tag="done", frozen=True):
    """Acknowledges a request that returns nothing."""


class Status(Message, tag="status", frozen=True):
    """Health: sessions held, bytes of their caches, resident memory of the process, work waiting.

    ``idle_seconds`` is how long nobody has asked for anything but this.
    """

    sessions: int
    cache_bytes: int
    rss_bytes: int
    queued: int
    saes: list[str]
    adapters: list[str] = msgspec.field(default_factory=list)
    idle_seconds: float = 0.0


SessionRequest = (
    live.Open
    | live.Apply
    | live.ReadFeatures
    | live.ReadPositions
    | live.Generate
    | live.StopGeneration
    | live.ReadProvenance
    | live.StopProvenance
    | live.ReadAttended
    | CloseSession
)
ResidentRequest = SessionRequest | Hello | AttachSae | AttachAdapter | ReadStatus
ResidentReply = (
    live.Opened
    | live.Computed
    | live.Queued
    | live.Superseded
    | live.Features
    | live.PositionShifts
    | live.Generated
    | live.GenerationEnded
    | live.GraphBegun
    | live.GraphProgress
    | live.GraphEnded
    | live.AttentionExplained
    | live.Attached
    | live.Failure
    | Welcome
    | SaeAttached
    | Attaching
    | AdapterAttached
    | Done
    | Status
)
