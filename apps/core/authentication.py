"""Session authentication that answers 401, not 403, to somebody who is not signed in."""

from __future__ import annotations

from rest_framework.authentication import SessionAuthentication as BaseSessionAuthentication
from rest_framework.request import Request


class SessionAuthentication(BaseSessionAuthentication):
    """The browser's session cookie, with the CSRF token on everything that changes something."""

    def authenticate_header(self, request: Request) -> str:
        """Naming a scheme is what makes the REST framework answer 401."""
        return "Session"
