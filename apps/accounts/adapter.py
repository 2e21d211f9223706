"""How allauth behaves here: who may sign up, with which address, what mails say, and how guessing is slowed down."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

from allauth.account.adapter import DefaultAccountAdapter
from allauth.core.internal.ratelimit import truncate_ip
from allauth.headless.adapter import DefaultHeadlessAdapter
from allauth.socialaccount.adapter import DefaultSocialAccountAdapter
from django.apps import apps
from django.conf import settings

from apps.accounts.secrets import was_mailed

INVITATION_HEADER = "X-Invitation"
_NOT_SENT = ("console", "dummy")


class Site(NamedTuple):
    """What mails call this site; never taken from a request, whose sender chooses its ``Host``."""

    name: str
    domain: str


def site() -> Site:
    """The site under the address of the settings."""
    return Site("InterpretabilityWorkbench", settings.WORKBENCH_PUBLIC_URL)


def mail_is_sent() -> bool:
    """Whether mail leaves this machine; otherwise links can only be handed over by those who see them."""
    return settings.EMAIL_BACKEND.rsplit(".", 2)[-2] not in _NOT_SENT


def may_sign_up(text: str) -> bool:
    """Whether the holder of an open invitation's link may make an account with it.

    Who invites is shown the link, too: only the one in the mail tells that its reader has the address.
    """
    if settings.WORKBENCH_SIGNUP == "invitation":
        return was_mailed(text) or not mail_is_sent()
    return bool(settings.WORKBENCH_SIGNUP == "open")


def _text(request: Any) -> str:
    return str(request.headers.get(INVITATION_HEADER, "")) if request is not None else ""


def invitation_of(request: Any) -> Any:
    """The open invitation whose secret the request carries, or None."""
    text = _text(request)
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
        return may_sign_up(_text(request)) and invitation_of(request) is not None

    def clean_email(self, email: str) -> str:
        """An account made with an invitation has the invited address."""
        invitation = invitation_of(self.request)
        if invitation is not None and invitation.email.lower() != email.lower():
            raise self.validation_error("other_address")
        return email

    def is_email_verified(self, request: Any, email: str) -> bool:
        """Who has the link of the mail an invitation was sent in has read that mail."""
        invitation = invitation_of(request)
        if (
            invitation is not None
            and invitation.email.lower() == email.lower()
            and was_mailed(_text(request))
        ):
            return True
        return bool(super().is_email_verified(request, email))

    def send_mail(self, template_prefix: str, email: str, context: dict[str, Any]) -> None:
        """Send it in the name of the configured site."""
        super().send_mail(template_prefix, email, {**context, "current_site": site()})

    def _get_login_attempts_cache_key(self, request: Any, **credentials: Any) -> str:
        """What failed attempts are counted by: the name that was tried, and from where.

        Counted by the name alone, a stranger could keep its owner out from everywhere; counted with the ``Host`` of
        the request, as usual, a stranger could begin anew under every name of the server.
        """
        login = str(credentials.get("email") or credentials.get("username") or "").lower()
        return f"{truncate_ip(self.get_client_ip(request))}:{login}"


class HeadlessAdapter(DefaultHeadlessAdapter):  # type: ignore[misc]
    """Addresses of the browser application."""

    def get_frontend_url(self, urlname: str, **kwargs: Any) -> str | None:
        """Below the configured public address: it is sent by mail, and the sender of a request chooses its ``Host``."""
        url = super().get_frontend_url(urlname, **kwargs)
        if url is None:
            return None
        parts = urlsplit(url)
        return f"{settings.WORKBENCH_PUBLIC_URL}{parts._replace(scheme='', netloc='').geturl()}"


class SocialAccountAdapter(DefaultSocialAccountAdapter):  # type: ignore[misc]
    """The OpenID Connect provider decides whom it sends, unless the setting says otherwise."""

    def is_open_for_signup(self, request: Any, sociallogin: Any) -> bool:
        """Whether somebody new gets an account."""
        return bool(settings.WORKBENCH_OIDC_SIGNUP)
