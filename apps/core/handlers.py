"""How errors become answers of the REST framework. Apart from the errors themselves, which load no views."""

from __future__ import annotations

from typing import Any

import structlog
from drf_standardized_errors.formatter import ExceptionFormatter as BaseFormatter
from drf_standardized_errors.handler import ExceptionHandler as BaseHandler
from rest_framework import exceptions

from apps.core.errors import TOO_LARGE, UNSTORABLE, MicroscopeError, is_too_large, is_unstorable
from apps.core.outages import Outage, outage_of

log = structlog.get_logger(__name__)


class ExceptionHandler(BaseHandler):
    """Turns :class:`MicroscopeError` into a response of the same shape as every other error."""

    def convert_known_exceptions(self, exc: Exception) -> Exception:
        """The REST framework's spelling of errors that come from elsewhere."""
        outage = None if isinstance(exc, MicroscopeError) else outage_of(exc)
        if outage is not None:
            log.error("outage", code=outage.code, error=repr(exc))
            self.exc = exc = outage
        if isinstance(exc, MicroscopeError):
            refusal = exceptions.APIException(detail=exc.message, code=exc.code)
            refusal.status_code = getattr(exc, "status", 422)
            refusal.wait = getattr(exc, "wait", None)  # type: ignore[attr-defined]
            refusal.headers = getattr(exc, "headers", {})  # type: ignore[attr-defined]
            refusal.auth_header = "Bearer" if refusal.status_code == 401 else None  # type: ignore[attr-defined]
            return refusal
        if is_too_large(exc):
            return exceptions.ValidationError(TOO_LARGE, code="max_value")
        if is_unstorable(exc):
            return exceptions.ValidationError(UNSTORABLE, code="invalid")
        return super().convert_known_exceptions(exc)

    def report_exception(self, exc: exceptions.APIException, response: Any) -> None:
        """Tell of defects; an outage is none, and has been logged in one line."""
        if not isinstance(self.exc, Outage):
            super().report_exception(exc, response)

    def get_headers(self, exc: exceptions.APIException) -> dict[str, Any]:
        """Those of the REST framework, and the refusal's own."""
        return {**super().get_headers(exc), **getattr(exc, "headers", {})}


class ExceptionFormatter(BaseFormatter):
    """Adds ``hint`` to every error."""

    def format_error_response(self, error_response: Any) -> dict[str, Any]:
        """``{type, errors: [{code, detail, attr, hint}]}``."""
        data: dict[str, Any] = super().format_error_response(error_response)
        for error in data["errors"]:
            error["hint"] = ""
        if isinstance(self.original_exc, MicroscopeError):
            data["errors"][0]["hint"] = self.original_exc.hint
            data["errors"][0]["attr"] = getattr(self.original_exc, "attr", None)
            numbers = getattr(self.original_exc, "numbers", None)
            if numbers is not None:
                data["errors"][0]["quota"] = numbers
        return data
