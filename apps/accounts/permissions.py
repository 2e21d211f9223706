"""What a token may call. The policy table checks the scope of everything inside a project; this is the rest."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request

from apps.accounts.models import ApiToken
from apps.accounts.scopes import Scope
from apps.core.errors import Forbidden

# By action of a view set or by method: the scope it needs; None keeps tokens out.
TokenScopes = dict[str, Scope | None]


def scope_missing(token: ApiToken, needed: str) -> Forbidden:
    """The refusal of a token that lacks a scope."""
    return Forbidden(
        f"The API token has the scopes {', '.join(token.scopes)}; this needs {needed}.",
        "Make a token with that scope.",
        code="scope_missing",
    )


class TokenScope(BasePermission):
    """Keeps tokens to their scopes.

    A view whose routes belong to no project says in ``token_scopes`` (a :data:`TokenScopes`) what they need.
    What a view does not name is left to the policy table, which knows the scope of each of its actions;
    a token that only reads can change nothing in any case.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        """Let sessions and sufficient tokens pass.

        Raises:
            Forbidden: ``scope_missing`` or ``session_needed``.
        """
        token = request.auth
        if not isinstance(token, ApiToken):
            return True
        scopes: TokenScopes = getattr(view, "token_scopes", {})
        method = (request.method or "").lower()
        name = getattr(view, "action", None) or method
        if name in scopes:
            needed = scopes[name]
            if needed is None:
                raise Forbidden(
                    "API tokens cannot do this.", "Sign in with a browser.", code="session_needed"
                )
            if needed not in token.scopes:
                raise scope_missing(token, needed)
        elif request.method not in SAFE_METHODS and set(token.scopes) <= {Scope.READ}:
            raise scope_missing(token, "more than read")
        return True
