"""API tokens in the ``Authorization`` header."""

from __future__ import annotations

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apps.accounts.models import ApiToken, User
from apps.accounts.tokens import BadToken, check_token


class TokenAuthentication(BaseAuthentication):
    """``Authorization: Bearer iwb_…``. A request that brings one is judged by it alone; cookies do not count."""

    def authenticate(self, request: Request) -> tuple[User, ApiToken] | None:
        """The token's person, or None when the request brings no token."""
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if not scheme:
            return None
        if scheme.lower() != "bearer":
            raise BadToken(
                "token_invalid", f"'{scheme[:20]}' is not understood.", "Send 'Authorization: Bearer TOKEN'."
            )
        token = check_token(text.strip())
        return token.user, token

    def authenticate_header(self, request: Request) -> str:
        """Naming a scheme is what makes the REST framework answer 401."""
        return "Bearer"
