"""What both WebSockets share: who may come in, frames in and out, and being thrown out again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import Any, ClassVar
from urllib.parse import parse_qs

import msgspec
import structlog
from channels.db import database_sync_to_async
from channels.exceptions import StopConsumer
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.layers import get_channel_layer
from channels.utils import await_many_dispatch
from django.contrib.sessions.models import Session
from django.utils import timezone

from apps.accounts.models import ApiToken, User
from apps.core.errors import MicroscopeError
from apps.core.publish import user_group
from microscope.protocol import Failure, Message, Ping, Pong

log = structlog.get_logger(__name__)

MAX_FRAME = 512 * 1024
RECHECK_SECONDS, RETRY_SECONDS = 30.0, 2.0
NOT_SIGNED_IN, FORBIDDEN, NOT_FOUND, SEAT_LOST, TOO_MANY = 4401, 4403, 4404, 4408, 4429
FAILED = 1011

_encoder = msgspec.json.Encoder()


class Socket(AsyncWebsocketConsumer):  # type: ignore[misc]
    """A signed-in WebSocket that speaks JSON messages.

    Subclasses set ``requests`` and implement :meth:`admit`, :meth:`handle`, :meth:`check_access` and
    :meth:`leave`.
    """

    requests: ClassVar[Any]
    user: Any
    _decoder: ClassVar[Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "requests" in cls.__dict__:
            cls._decoder = msgspec.json.Decoder(cls.requests)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._recheck_now = asyncio.Event()
        self.groups_joined: set[str] = set()

    # --- life -----------------------------------------------------------------------------------------

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, with or without the channel layer: a broker that is away must not shut people out."""
        self.scope, self.base_send = scope, send
        sources = [receive]
        self.channel_layer = get_channel_layer()
        try:
            async with asyncio.timeout(3):
                self.channel_name = await self.channel_layer.new_channel()
            sources.append(functools.partial(self.channel_layer.receive, self.channel_name))
        except Exception as error:  # whatever the broker's client raises
            log.warning("socket_without_channel_layer", error=str(error))
            self.channel_layer = None
        try:
            with contextlib.suppress(StopConsumer):
                await await_many_dispatch(sources, self.dispatch)
        finally:
            # Also when a handler raised, or the server gave up on the connection.
            await self._clean_up()

    async def dispatch(self, message: dict[str, Any]) -> None:
        """Call the handler. Channels would look after database connections here, with a thread per frame."""
        handler = getattr(self, message["type"].replace(".", "_"), None)
        if handler is None:
            return
        try:
            await handler(message)
        except StopConsumer:
            raise
        except Exception:
            # What this connection is told or asks for next may depend on what was not done: it starts over.
            log.exception("socket_handler_failed", handler=message["type"])
            await self.shut(FAILED)
            raise StopConsumer from None

    async def websocket_connect(self, message: dict[str, Any]) -> None:
        """Let the person in, or tell them by the close code why not."""
        await self.accept()
        self.user = self.scope.get("user")
        if self.user is None or not self.user.is_authenticated:
            await self.shut(NOT_SIGNED_IN)
            return
        await self.join(user_group(self.user.pk))
        code = await self.admit()
        if code is not None:
            await self.shut(code)
            return
        self.spawn(self._recheck())

    async def websocket_disconnect(self, message: dict[str, Any]) -> None:
        """The other side is gone."""
        raise StopConsumer

    async def _clean_up(self) -> None:
        """Leave nothing behind, whatever of it fails."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
        for group in list(self.groups_joined):
            await self.part(group)
        try:
            await self.leave()
        except Exception:
            log.exception("socket_not_left")

    async def shut(self, code: int) -> None:
        """Close with a code."""
        if not self._closing:
            self._closing = True
            await self.close(code=code)

    # --- for subclasses -------------------------------------------------------------------------------

    def asked(self, name: str) -> list[str]:
        """What the address says after ``?`` under a name."""
        return parse_qs(self.scope.get("query_string", b"").decode(errors="replace")).get(name, [])

    async def admit(self) -> int | None:
        """Called once after accepting; a close code refuses."""
        return None

    async def handle(self, message: Any) -> None:
        """One decoded message; must return soon."""

    async def check_access(self) -> int | None:
        """Whether access still holds; a close code ends it. Asked on a timer and when a role changed."""
        return None

    async def leave(self) -> None:
        """Called once at the end."""

    # --- frames ---------------------------------------------------------------------------------------

    async def websocket_receive(self, message: dict[str, Any]) -> None:
        """Decode a frame; what is no message is answered and forgotten."""
        if self._closing:
            return
        text = message.get("text")
        if text is None:
            await self.fail("bad_message", "Binary frames are not understood.", "Send JSON text.")
            return
        if len(text) > MAX_FRAME:
            await self.fail("bad_message", f"The frame has {len(text)} characters; {MAX_FRAME} is the limit.")
            return
        try:
            decoded = self._decoder.decode(text)
        except (msgspec.MsgspecError, UnicodeEncodeError, RecursionError) as error:
            await self.fail("bad_message", f"The frame is no message: {error}.", "See ws_schema.json.")
            return
        if isinstance(decoded, Ping):
            await self.say(Pong())
            return
        rev = getattr(decoded, "rev", None)
        try:
            await self.handle(decoded)
        except MicroscopeError as error:
            await self.fail(error.code, error.message, error.hint, rev=rev)
        except Exception:
            log.exception("socket_request_failed", request=type(decoded).__name__)
            await self.fail(
                "crashed", "This could not be done.", "The portal's log has the details.", rev=rev
            )

    async def say(self, message: Message) -> None:
        """Send a message, unless the socket is closing."""
        if not self._closing:
            await self.send(text_data=_encoder.encode(message).decode())

    async def fail(self, code: str, message: str, hint: str = "", *, rev: int | None = None) -> None:
        """Send a failure."""
        await self.say(Failure(code=code, message=message, hint=hint, rev=rev))

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        """Run something beside the receive loop; it ends with the socket."""
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("socket_task_failed", exc_info=task.exception())

    # --- groups and access ----------------------------------------------------------------------------

    async def join(self, group: str) -> None:
        """Hear what is said to a group."""
        self.groups_joined.add(group)
        if self.channel_layer is not None:
            await self.channel_layer.group_add(group, self.channel_name)

    async def part(self, group: str) -> None:
        """Stop hearing it."""
        self.groups_joined.discard(group)
        if self.channel_layer is not None:
            with contextlib.suppress(Exception):
                await self.channel_layer.group_discard(group, self.channel_name)

    async def session_ended(self, event: dict[str, Any]) -> None:
        """A sign-out or a new password: of this session, or of all."""
        if event["session"] in (None, self._session_key()):
            await self.shut(NOT_SIGNED_IN)

    async def token_ended(self, event: dict[str, Any]) -> None:
        """An API token was revoked or got a new secret."""
        if self.user.token is not None and str(self.user.token.pk) == event["token"]:
            await self.shut(NOT_SIGNED_IN)

    async def access_changed(self, event: dict[str, Any]) -> None:
        """A role changed."""
        self._recheck_now.set()

    def _session_key(self) -> str | None:
        session = self.scope.get("session")
        return session.session_key if session is not None else None

    async def _recheck(self) -> None:
        """Close when access is lost: looks when a role changed, and regularly, for messages can get lost themselves."""
        pause = RECHECK_SECONDS
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._recheck_now.wait()
            self._recheck_now.clear()
            try:
                code = None if await self._session_holds() else NOT_SIGNED_IN
                code = code or await self.check_access()
            except (
                Exception
            ) as error:  # whatever the database raises: one failed look is no reason to stop looking
                log.warning("socket_access_not_read", error=str(error))
                pause = RETRY_SECONDS
                continue
            pause = RECHECK_SECONDS
            if code is not None:
                await self.shut(code)
                return

    @database_sync_to_async  # type: ignore[untyped-decorator]
    def _session_holds(self) -> bool:
        if self.user.token is not None:
            return bool(ApiToken.objects.usable().filter(pk=self.user.token.pk).exists())
        key = self._session_key()
        active = User.objects.filter(pk=self.user.pk, is_active=True).exists()
        return active and (
            key is None or Session.objects.filter(pk=key, expire_date__gt=timezone.now()).exists()
        )
