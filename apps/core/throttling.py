"""How often one may ask: counted per API token, else per person, and per address only for strangers."""

from __future__ import annotations

import math
from typing import Any

import structlog
from django.conf import settings
from django.core.cache import cache
from rest_framework.request import Request
from rest_framework.throttling import SimpleRateThrottle

from apps.core.errors import Refused

log = structlog.get_logger(__name__)


class RateThrottle(SimpleRateThrottle):
    """``WORKBENCH_RATE_LIMIT`` requests, for everybody behind one address on their own.

    A cache that is away stops nobody: counting requests is no reason to refuse them.
    """

    scope = "api"

    def __init__(self) -> None:
        self.rate = settings.WORKBENCH_RATE_LIMIT
        self.num_requests, self.duration = self.parse_rate(self.rate)
        self.cache = cache

    def get_cache_key(self, request: Request, view: Any) -> str:
        """Whose requests are counted together."""
        if request.auth is not None:
            ident = f"token.{request.auth.pk}"
        elif request.user.is_authenticated:
            ident = f"user.{request.user.pk}"
        else:
            ident = f"address.{self.get_ident(request)}"
        return f"throttle.{ident}"

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the request.

        Raises:
            Refused: ``rate_limited``, with the numbers.
        """
        try:
            passed = super().allow_request(request, view)
        except Exception as error:  # whatever the cache's client raises
            log.warning("throttle_without_cache", error=str(error))
            return True
        if passed:
            return True
        wait = math.ceil(self.wait() or 1)
        refusal = Refused(
            "rate_limited",
            f"{len(self.history)} requests within {self.duration} s are the limit ({self.rate}).",
            f"Try again in {wait} s.",
            status=429,
        )
        refusal.wait = wait
        raise refusal
