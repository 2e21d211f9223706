"""One-time tickets: a program cannot send its token with a browser's WebSocket, so it trades it for one."""

from __future__ import annotations

import secrets
from datetime import timedelta

from apps.accounts.models import ApiToken, User, WsTicket
from apps.accounts.secrets import digest_of
from apps.accounts.tokens import note_use
from apps.core import clock

LIFETIME = timedelta(seconds=60)


def issue_ticket(token: ApiToken) -> tuple[str, WsTicket]:
    """A ticket's text and its row. Tickets whose time is over are swept out on the way."""
    now = clock.now()
    WsTicket.objects.filter(expires_at__lt=now).delete()
    text = secrets.token_urlsafe(32)
    return text, WsTicket.objects.create(token=token, digest=digest_of(text), expires_at=now + LIFETIME)


def redeem_ticket(text: str) -> User | None:
    """The person of a ticket, acting through its token; None when it is unknown, used, too old or its token ended."""
    row = WsTicket.objects.filter(digest=digest_of(text), expires_at__gt=clock.now()).first()
    # Of two that come with the same ticket, one deletes the row.
    if row is None or not WsTicket.objects.filter(pk=row.pk).delete()[0]:
        return None
    token: ApiToken | None = ApiToken.objects.usable().select_related("user").filter(pk=row.token_id).first()
    if token is None:
        return None
    note_use(token)
    user: User = token.user
    user.token = token
    return user
