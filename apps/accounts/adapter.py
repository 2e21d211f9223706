"""How allauth behaves here: who may sign up, and with which address."""

from __future__ import annotations

from typing import Any, ClassVar

from allauth.account.adapter import DefaultAccountAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.apps import apps
from django.conf import settings

INVITATION_HEADER = "X-Invitation"


def invitation_of(request: Any) -> Any:
    """The open invitation whose secret the request carries, or None."""
    text = request.headers.get(INVITATION_HEADER, "") if request is not None else ""
    # Projects come above accounts; an invitation is asked for by name, as any other setting would be.
    return apps.get_model("projects", "Invitation")._default_manager.find(text) if text else None


class AccountAdapter(DefaultAccountAdapter):  # type: ignore[misc]
    """Sign-up is open, by invitation, or closed, as the setting says."""

    error_messages: ClassVar[dict[str, Any]] = {
        **DefaultAccountAdapter.error_messages,
        "other_address": "The invitation was sent to another address.",
    }

    def is_open_for_signup(self, request: Any) -> bool:
        """Whether this request may make an account."""
        if settings.WORKBENCH_SIGNUP == "open":
            return True
        return settings.WORKBENCH_SIGNUP == "invitation" and invitation_of(request) is not None

    def clean_email(self, email: str) -> str:
        """An account made with an invitation has the invited address."""
        invitation = invitation_of(self.request)
        if invitation is not None and invitation.email.lower() != email.lower():
            raise self.validation_error("other_address")
        return email

    def is_email_verified(self, request: Any, email: str) -> bool:
        """Who has the secret of an invitation has read the mail it was sent in."""
        invitation = invitation_of(request)
        if invitation is not None and invitation.email.lower() == email.lower():
            return True
        return bool(super().is_email_verified(request, email))


class SocialAccountAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    """The OpenID Connect provider decides whom it sends, unless the setting says otherwise."""

    def is_open_for_signup(self, request: Any, sociallogin: Any) -> bool:
        """Whether somebody new gets an account."""
        return bool(settings.WORKBENCH_OIDC_SIGNUP)
