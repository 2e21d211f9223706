"""Making, checking, renewing and revoking API tokens."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.apps import apps
from django.db import transaction
from django.db.models import Q

from apps.accounts.models import ApiToken, User
from apps.accounts.scopes import Scope
from apps.accounts.secrets import digest_of
from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import Refused, unknown_reference
from apps.core.publish import publish_on_commit, user_group

PREFIX = "iwb"
MAX_TOKENS = 50
_USE_NOTED_EVERY = timedelta(minutes=1)
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"


class BadToken(Refused):
    """A token that lets nobody in (401)."""

    def __init__(self, code: str, message: str, hint: str = "Make a new one on your profile page.") -> None:
        super().__init__(code, message, hint, status=401)


def _new_secret(key: str) -> str:
    return f"{PREFIX}_{key}_{secrets.token_urlsafe(32)}"


def _publish_end(token: ApiToken) -> None:
    publish_on_commit(user_group(token.user_id), {"type": "token.ended", "token": str(token.pk)})


@transaction.atomic
def create_token(
    *,
    actor: User,
    name: str,
    scopes: Iterable[str],
    project_id: UUID | None = None,
    expires_at: datetime | None = None,
) -> tuple[ApiToken, str]:
    """A new token and its text, which nobody can see again.

    Raises:
        Refused: ``too_many_tokens``, ``expired`` or ``does_not_exist`` (the project).
    """
    mine = ApiToken.objects.filter(user=actor, revoked_at=None).count()
    if mine >= MAX_TOKENS:
        raise Refused(
            "too_many_tokens",
            f"You have {mine} tokens; {MAX_TOKENS} is the limit.",
            "Revoke one.",
            status=409,
        )
    _check_expiry(expires_at)
    project = None
    if project_id is not None:
        manager: Any = apps.get_model("projects", "Project")._default_manager
        project = manager.visible_to(actor).filter(pk=project_id).first()
        if project is None:
            raise unknown_reference("project")
    key = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    secret = _new_secret(key)
    token = ApiToken.objects.create(
        user=actor,
        name=name,
        key=key,
        digest=digest_of(secret),
        scopes=sorted({Scope.READ.value, *scopes}),
        project=project,
        expires_at=expires_at,
    )
    audit.record(
        actor=actor,
        action="token.created",
        target=token,
        project_id=project_id,
        data={
            "scopes": token.scopes,
            "expires_at": expires_at.isoformat() if expires_at is not None else None,
        },
    )
    return token, secret


@transaction.atomic
def rotate_token(*, actor: User, token: ApiToken, expires_at: datetime | None = None) -> tuple[ApiToken, str]:
    """A new secret for the token; the old one ends now, and so do the connections opened with it.

    Args:
        expires_at: a new end; without it the token lives from now as long as it was made for.
    """
    if token.revoked_at is not None:
        raise Refused("token_revoked", "The token is revoked.", "Make a new one.", status=409)
    now = clock.now()
    if expires_at is None and token.expires_at is not None:
        expires_at = now + (token.expires_at - (token.rotated_at or token.created_at))
    _check_expiry(expires_at)
    secret = _new_secret(token.key)
    token.digest, token.rotated_at, token.expires_at = digest_of(secret), now, expires_at
    token.save(update_fields=["digest", "rotated_at", "expires_at"])
    token.tickets.all().delete()
    audit.record(actor=actor, action="token.rotated", target=token, project_id=token.project_id)
    _publish_end(token)
    return token, secret


@transaction.atomic
def revoke_token(*, actor: User, token: ApiToken) -> None:
    """End the token for good, and the connections opened with it. Revoking twice is no error."""
    if not ApiToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=clock.now()):
        return
    token.tickets.all().delete()
    audit.record(actor=actor, action="token.revoked", target=token, project_id=token.project_id)
    _publish_end(token)


def check_token(text: str) -> ApiToken:
    """The token with that text, its person loaded and acting through it.

    Raises:
        BadToken: ``token_invalid``, ``token_revoked``, ``token_expired`` or ``account_inactive``. Only who
            knows the secret learns which.
    """
    parts = text.split("_", 2)
    found = None
    if len(parts) == 3 and parts[0] == PREFIX and len(parts[1]) == 12 and "\0" not in parts[1]:
        found = ApiToken.objects.select_related("user").filter(key=parts[1]).first()
    if found is None or not hmac.compare_digest(found.digest, digest_of(text)):
        raise BadToken("token_invalid", "There is no such API token.")
    token: ApiToken = found
    if token.revoked_at is not None:
        raise BadToken("token_revoked", "The API token is revoked.")
    if token.expired:
        raise BadToken(
            "token_expired", f"The API token expired on {token.expires_at:%Y-%m-%d}.", "Rotate it."
        )
    if not token.user.is_active:
        raise BadToken("account_inactive", "The account is switched off.", "Ask an administrator.")
    note_use(token)
    token.user.token = token
    return token


def note_use(token: ApiToken) -> None:
    """Remember when it was used, at most once a minute."""
    now = clock.now()
    if token.last_used_at is None or now - token.last_used_at > _USE_NOTED_EVERY:
        ApiToken.objects.filter(
            Q(last_used_at=None) | Q(last_used_at__lt=now - _USE_NOTED_EVERY), pk=token.pk
        ).update(last_used_at=now)
        token.last_used_at = now


def _check_expiry(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at <= clock.now():
        raise Refused(
            "expired",
            "The end of the token lies in the past.",
            "Choose a later one.",
            status=400,
            attr="expires_at",
        )
