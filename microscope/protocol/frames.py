"""How messages travel between the portal and a resident worker.

A frame is a 4-byte big-endian length and one msgpack array: ``[id, session, message]`` of a request,
``[id, message]`` of a reply, which repeats the id. The session is empty where a request is about none.
"""

from __future__ import annotations

import asyncio
from typing import TypeVar

import msgspec

from microscope.params.fields import Integer
from microscope.protocol.resident import ResidentReply, ResidentRequest

MAX_FRAME_BYTES = 16 * 2**20
# Before the other side has been authenticated.
MAX_HELLO_BYTES = 4096


class ProtocolError(Exception):
    """The peer sent something that is no message of this protocol."""


class RequestFrame(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A request on its way to the resident worker."""

    id: Integer
    session: str
    message: ResidentRequest


class ReplyFrame(msgspec.Struct, array_like=True, frozen=True):
    """A reply on its way back; ``id`` is 0 for what was not asked for."""

    id: int
    message: ResidentReply


F = TypeVar("F", RequestFrame, ReplyFrame)

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(RequestFrame)
_replies = msgspec.msgpack.Decoder(ReplyFrame)


def encode_request(number: int, message: ResidentRequest, session: str = "") -> bytes:
    """The frame of a request: length and body."""
    return _framed(_encoder.encode((number, session, message)))


def encode_reply(number: int, message: ResidentReply) -> bytes:
    """The frame of a reply: length and body."""
    return _framed(_encoder.encode((number, message)))


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


def decode_request(body: bytes) -> RequestFrame:
    """Raises :class:`ProtocolError` when the bytes are no request."""
    return _decoded(_requests, body)


def decode_reply(body: bytes) -> ReplyFrame:
    """Raises :class:`ProtocolError` when the bytes are no reply."""
    return _decoded(_replies, body)


def _framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def _decoded(decoder: msgspec.msgpack.Decoder[F], body: bytes) -> F:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise ProtocolError(str(error)) from error
