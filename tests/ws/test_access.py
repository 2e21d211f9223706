"""Who gets into which WebSocket, by session and by ticket, and who is thrown out again.

Everything goes through the whole application: origin check, session, routing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from channels.testing import WebsocketCommunicator
from django.test import Client
from django.utils import timezone

from apps.accounts.models import ApiToken, WsTicket
from apps.accounts.scopes import Scope
from apps.accounts.services import end_sessions
from apps.accounts.tickets import issue_ticket
from apps.accounts.tokens import create_token, revoke_token, rotate_token
from apps.projects import services as projects
from apps.projects.policies import SCOPES, Action
from tests.api.routes import SOCKETS, allowed
from tests.conftest import PEOPLE
from workbench.asgi import application
from workbench.routing import urlpatterns

NOT_SIGNED_IN, FORBIDDEN, NOT_FOUND = 4401, 4403, 4404
REFUSED = 1000  # before the handshake
ORIGIN = (b"origin", b"http://localhost")

pytestmark = pytest.mark.django_db(transaction=True)


class Connection(WebsocketCommunicator):
    """A socket of one person."""

    def __init__(self, path: str, *, cookie: str = "", origin: bool = True) -> None:
        headers = [(b"host", b"localhost"), *([ORIGIN] if origin else [])]
        if cookie:
            headers.append((b"cookie", f"sessionid={cookie}".encode()))
        super().__init__(application, path, headers=headers)

    async def verdict(self) -> int | None:
        """None when let in (something is said or a ping answered), else the close code."""
        connected, code = await self.connect(timeout=60)
        if not connected:
            return code or 1000
        await self.send_to(text_data='{"type": "ping"}')
        while True:
            message = await self.receive_output(timeout=60)
            if message["type"] == "websocket.close":
                return int(message["code"])
            if '"pong"' in message.get("text", ""):
                return None

    async def end(self) -> int:
        """Wait for the server to close."""
        while True:
            message = await self.receive_output(timeout=60)
            if message["type"] == "websocket.close":
                return int(message["code"])


@pytest.fixture
def ticket_of(world):
    def make(user: Any, *scopes: str, project: Any = None) -> tuple[str, ApiToken]:
        token, _ = create_token(
            actor=user, name="t", scopes=scopes, project_id=project.pk if project is not None else None
        )
        return issue_ticket(token)[0], token

    return make


def with_ticket(path: str, ticket: str) -> Connection:
    return Connection(f"{path}{'&' if '?' in path else '?'}ticket={ticket}", origin=False)


def test_every_socket_is_in_the_matrix() -> None:
    missing = sorted({route.name for route in urlpatterns} - set(SOCKETS) - {"ws-unknown"})
    rows = "\n".join(f'    "{name}": SocketCall(Action.…, lambda w: f"/ws/…"),' for name in missing)
    assert not missing, f"Add to SOCKETS in tests/api/routes.py:\n{rows}"
    assert set(SOCKETS) <= {route.name for route in urlpatterns}


@pytest.mark.parametrize("name", SOCKETS)
async def test_sessions(name, world, cookie_of) -> None:
    how = SOCKETS[name]
    for person in PEOPLE:
        cookie = await sync_to_async(cookie_of)(person)
        connection = Connection(how.path(world), cookie=cookie)
        if person in allowed(how.grant):
            expected = None
        elif person == "anonymous":
            expected = NOT_SIGNED_IN
        else:
            expected = NOT_FOUND if person == "outsider" else FORBIDDEN
        assert await connection.verdict() == expected, person
        await connection.disconnect()


@pytest.mark.parametrize("name", SOCKETS)
async def test_tickets(name, world, foreign, ticket_of) -> None:
    how, owner = SOCKETS[name], world.people["owner"]
    needed = SCOPES[Action(how.grant)]
    for scope in Scope:
        ticket, _ = await sync_to_async(ticket_of)(owner, scope)
        connection = with_ticket(how.path(world), ticket)
        expected = None if needed in (Scope.READ, scope) else FORBIDDEN
        assert await connection.verdict() == expected, scope
        await connection.disconnect()
    staff = world.people["staff"]
    elsewhere, _ = await sync_to_async(ticket_of)(staff, *Scope, project=foreign.project)
    connection = with_ticket(how.path(world), elsewhere)
    assert await connection.verdict() == NOT_FOUND
    await connection.disconnect()


async def test_a_ticket_opens_one_socket_soon(world, ticket_of) -> None:
    path = SOCKETS["ws-jobs"].path(world)
    ticket, _ = await sync_to_async(ticket_of)(world.people["viewer"], "read")
    first, second = with_ticket(path, ticket), with_ticket(path, ticket)
    assert await first.verdict() is None
    assert await second.verdict() == NOT_SIGNED_IN
    late, token = await sync_to_async(ticket_of)(world.people["viewer"], "read")
    await WsTicket.objects.filter(token=token).aupdate(expires_at=timezone.now() - timedelta(seconds=1))
    third = with_ticket(path, late)
    assert await third.verdict() == NOT_SIGNED_IN
    revoked, token = await sync_to_async(ticket_of)(world.people["viewer"], "read")
    await ApiToken.objects.filter(pk=token.pk).aupdate(revoked_at=timezone.now())
    fourth = with_ticket(path, revoked)
    assert await fourth.verdict() == NOT_SIGNED_IN
    for connection in (first, second, third, fourth):
        await connection.disconnect()


async def test_a_bad_ticket_is_not_saved_by_a_cookie(world, cookie_of) -> None:
    cookie = await sync_to_async(cookie_of)("owner")
    path = SOCKETS["ws-jobs"].path(world)
    connection = Connection(f"{path}&ticket=guess", cookie=cookie)
    assert await connection.verdict() == NOT_SIGNED_IN
    await connection.disconnect()


async def test_sessions_need_the_right_origin(world, cookie_of) -> None:
    cookie = await sync_to_async(cookie_of)("owner")
    connection = Connection(SOCKETS["ws-jobs"].path(world), cookie=cookie, origin=False)
    assert await connection.verdict() == REFUSED
    connection = Connection(SOCKETS["ws-jobs"].path(world), cookie=cookie)


def _from_page(path: str, cookie: str, origin: str, host: str = "localhost:8000") -> Connection:
    connection = Connection(path, cookie=cookie)
    connection.scope["headers"] = [
        (b"host", host.encode()),
        (b"origin", origin.encode()),
        (b"cookie", f"sessionid={cookie}".encode()),
    ]
    return connection


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://localhost:8000", "localhost:8000"),
        ("http://localhost:9000", "localhost:8000"),
        ("http://localhost", "localhost:8000"),
        ("https://localhost:8000", "localhost:8000"),
        ("http://LOCALHOST:8000", "localhost:8000"),
        ("http://evil.example", "localhost:8000"),
        ("http://evil.example:8000", "evil.example:8000"),
        ("http://127.0.0.1:8000", "localhost:8000"),
        ("http://localhost.evil.example:8000", "localhost:8000"),
        ("http://a.lab.example", "localhost:8000"),
        ("https://a.lab.example", "localhost:8000"),
        ("null", "localhost:8000"),
        ("http://[", "localhost:8000"),
        ("", "localhost:8000"),
    ],
)
async def test_pages_connect_from_where_they_could_post(origin, host, world, cookie_of, settings) -> None:
    """The port counts: a page that another program serves on this machine is somebody else's."""
    settings.CSRF_TRUSTED_ORIGINS = ["http://127.0.0.1:8000", "https://*.lab.example"]
    cookie = await sync_to_async(cookie_of)("owner")
    connection = _from_page(SOCKETS["ws-jobs"].path(world), cookie, origin, host)
    verdict = await connection.verdict()
    client = Client(enforce_csrf_checks=True, headers={"host": host, "origin": origin})
    client.cookies["sessionid"], client.cookies["csrftoken"] = cookie, "x" * 32
    posted = await sync_to_async(client.post)("/api/v1/projects", headers={"x-csrftoken": "x" * 32})
    refused = posted.status_code == 403 or (posted.status_code == 400 and b"name" not in posted.content)
    assert refused == (verdict is not None), (verdict, posted.status_code, posted.content[:200])
    assert (verdict is None) == (
        origin in ("http://localhost:8000", "http://127.0.0.1:8000", "https://a.lab.example")
    )
    await connection.disconnect()


@pytest.mark.parametrize("name", SOCKETS)
@pytest.mark.parametrize("ending", ["revoked", "rotated", "switched off", "left"])
async def test_open_sockets_end(name, ending, world, ticket_of) -> None:
    editor = world.people["editor"]
    ticket, token = await sync_to_async(ticket_of)(editor, *Scope)
    other_ticket, _ = await sync_to_async(ticket_of)(world.people["owner"], *Scope)
    connection = with_ticket(SOCKETS[name].path(world), ticket)
    bystander = with_ticket(SOCKETS[name].path(world), other_ticket)
    assert await connection.verdict() is None
    assert await bystander.verdict() is None

    def end() -> None:
        if ending == "revoked":
            revoke_token(actor=editor, token=token)
        elif ending == "rotated":
            rotate_token(actor=editor, token=token)
        elif ending == "switched off":
            end_sessions(editor)
        else:
            membership = projects.membership_of(project=world.project, user_id=editor.pk)
            projects.remove_member(actor=world.people["owner"], membership=membership)

    await sync_to_async(end)()
    assert await connection.end() == (NOT_FOUND if ending == "left" else NOT_SIGNED_IN)
    await bystander.send_to(text_data='{"type": "ping"}')
    while '"pong"' not in (await bystander.receive_output(timeout=60)).get("text", ""):
        pass
    await connection.disconnect()
    await bystander.disconnect()


async def test_logout_closes_the_socket_of_that_session_only(world, client_of) -> None:
    here, there = [await sync_to_async(client_of)("viewer") for _ in range(2)]
    path = SOCKETS["ws-jobs"].path(world)
    ending = Connection(path, cookie=here.cookies["sessionid"].value)
    staying = Connection(path, cookie=there.cookies["sessionid"].value)
    assert (await ending.verdict(), await staying.verdict()) == (None, None)
    await sync_to_async(here.delete)("/_allauth/browser/v1/auth/session")
    assert await ending.end() == NOT_SIGNED_IN
    await staying.send_to(text_data='{"type": "ping"}')
    assert "pong" in (await staying.receive_output(timeout=60))["text"]
    for connection in (ending, staying):
        await connection.disconnect()
