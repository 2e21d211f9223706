"""Making and finding people."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import Q

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
    """The active user with that user name or e-mail address."""
    return User.objects.filter(Q(username__iexact=name) | Q(email__iexact=name), is_active=True).first()


def end_sessions(user: User) -> None:
    """Close the user's live connections, as when an account is switched off."""
    publish_on_commit(user_group(user.pk), {"type": "session.ended", "session": None})
