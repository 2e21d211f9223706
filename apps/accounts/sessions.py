"""What follows from signing in and out: sockets of an ended session close, and changes of accounts are audited.

allauth makes these changes itself; its signals are the one place where they can be heard of.
"""

from __future__ import annotations

from typing import Any

from allauth.account import signals as account
from allauth.mfa import signals as mfa
from allauth.socialaccount import signals as social
from django.contrib.auth.signals import user_logged_out

from apps.audit import services as audit
from apps.core.publish import publish, user_group


def connect() -> None:
    """Hear of every sign-out, whichever page it came from, and of changes of accounts."""
    user_logged_out.connect(_signed_out, dispatch_uid="close-sockets-of-session")
    for signal, action in _AUDITED.items():
        signal.connect(_record(action), dispatch_uid=f"audit-{action}", weak=False)


def _signed_out(sender: Any, request: Any, user: Any, **kwargs: Any) -> None:
    if user is not None and request.session.session_key:
        publish(user_group(user.pk), {"type": "session.ended", "session": request.session.session_key})


_AUDITED: dict[Any, str] = {
    account.user_signed_up: "user.signed_up",
    account.password_changed: "user.password_changed",
    account.password_set: "user.password_set",
    account.password_reset: "user.password_reset",
    account.email_confirmed: "user.email_confirmed",
    mfa.authenticator_added: "user.second_factor_added",
    mfa.authenticator_removed: "user.second_factor_removed",
    mfa.authenticator_reset: "user.recovery_codes_renewed",
    social.social_account_added: "user.single_sign_on_added",
    social.social_account_removed: "user.single_sign_on_removed",
}


def _record(action: str) -> Any:
    def record(sender: Any, request: Any = None, user: Any = None, **kwargs: Any) -> None:
        if user is None and "email_address" in kwargs:
            user = kwargs["email_address"].user
        if user is None and "socialaccount" in kwargs:
            user = kwargs["socialaccount"].user
        data = {"type": str(kwargs["authenticator"].type)} if "authenticator" in kwargs else {}
        audit.record(actor=user, action=action, target=user, data=data)

    return record
