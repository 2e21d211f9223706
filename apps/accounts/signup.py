"""Signing up; checks run in an order that reveals nothing about other accounts."""

from __future__ import annotations

from typing import Any

from allauth.account.adapter import get_adapter
from allauth.headless.account.views import SignupView
from allauth.headless.base.response import ForbiddenResponse
from django.http import HttpRequest
from django.http.response import HttpResponseBase


class SignUpView(SignupView):  # type: ignore[misc]
    """First whether this request may make an account, then what is wrong with what it says.

    The other way round, as allauth has it, the form tells everybody which addresses have an account.
    """

    def handle(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Refuse, or go on."""
        if not get_adapter().is_open_for_signup(request):
            refusal: HttpResponseBase = ForbiddenResponse(request)
            return refusal
        answer: HttpResponseBase = super().handle(request, *args, **kwargs)
        return answer
