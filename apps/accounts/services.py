"""Making and finding people."""

from __future__ import annotations

from typing import Any

from allauth.account.models import EmailAddress
from django.db import transaction

from apps.accounts.models import User
from apps.audit import services as audit
from apps.core.publish import publish_on_commit, user_group


@transaction.atomic
def ensure_user(
    *, username: str, email: str, password: str, staff: bool = False, actor: User | None = None
) -> tuple[User, bool]:
    """The user of that name, made if missing. An existing one is left as they are.

    Returns:
        the user, and whether they were made now.
    """
    existing = User.objects.filter(username__iexact=username).first()
    if existing is not None:
        return existing, False
    user = User.objects.create_user(
        username=username, email=email, password=password, is_staff=staff, is_superuser=staff
    )
    audit.record(actor=actor, action="user.created", target=user, data={"staff": staff})
    return user, True


@transaction.atomic
def update_me(*, user: User, changes: dict[str, Any]) -> User:
    """Change what people may change of themselves."""
    for name, value in changes.items():
        setattr(user, name, value)
    user.save(update_fields=list(changes))
    audit.record(actor=user, action="user.changed", target=user, data={"fields": sorted(changes)})
    return user


def find_user(name: str) -> User | None:
    """The active user with that user name. E-mail addresses are not looked up: that would tell which ones have an account."""
    return User.objects.filter(username__iexact=name, is_active=True).first()


def has_address(user: User, email: str) -> bool:
    """Whether the e-mail address is the user's: that of their account, or another one they have verified."""
    if user.email.lower() == email.lower():
        return True
    return bool(EmailAddress.objects.filter(user=user, email__iexact=email, verified=True).exists())


def end_sessions(user: User) -> None:
    """Close the user's live connections, as when an account is switched off."""
    publish_on_commit(user_group(user.pk), {"type": "session.ended", "session": None})
