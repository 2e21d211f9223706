"""OpenAPI: one error component for every operation, msgspec structs as components, session sign-in."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.openapi import AutoSchema as BaseAutoSchema
from drf_spectacular.plumbing import ComponentIdentity, ResolvedComponent
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse
from rest_framework import serializers
from rest_framework.permissions import AllowAny

from microscope.params.schema import schema_components

_REF = "#/components/schemas/{name}"


class QuotaNumbersSerializer(serializers.Serializer[Any]):
    """The numbers of a refusal by quota."""

    limit = serializers.IntegerField()
    used = serializers.IntegerField()
    asked = serializers.IntegerField()
    unit = serializers.CharField()
    of = serializers.ChoiceField(choices=["project", "user"])


class ErrorSerializer(serializers.Serializer[Any]):
    """What went wrong, once."""

    code = serializers.CharField(help_text="Stable identifier in snake_case.")
    detail = serializers.CharField(help_text="One sentence for people.")
    attr = serializers.CharField(allow_null=True, help_text="Field of the request it is about.")
    hint = serializers.CharField(allow_blank=True, help_text="What to do about it; may be empty.")
    quota = QuotaNumbersSerializer(required=False, help_text="Only where a limit is reached (413, 429).")


class ErrorResponseSerializer(serializers.Serializer[Any]):
    """The shape of every answer from 400 up."""

    type = serializers.ChoiceField(choices=["validation_error", "client_error", "server_error"])
    errors = ErrorSerializer(many=True)  # type: ignore[assignment]


# A file, whole or in part; its type follows from its name.
FILE_ANSWERS: dict[Any, Any] = {
    (200, "application/octet-stream"): OpenApiTypes.BINARY,
    (200, "application/json"): OpenApiTypes.ANY,
    (200, "application/x-ndjson"): OpenApiTypes.BINARY,
    (200, "text/*"): OpenApiTypes.STR,
    (206, "application/*"): OpenApiTypes.BINARY,
    (206, "text/*"): OpenApiTypes.BINARY,
    302: OpenApiResponse(description="The file is in an object store, at this address for a few minutes."),
    409: ErrorResponseSerializer,
    416: OpenApiResponse(description="The file has no such range."),
}
ARCHIVE_ANSWERS: dict[Any, Any] = {
    (200, "application/zip"): OpenApiTypes.BINARY,
    409: ErrorResponseSerializer,
}


class AutoSchema(BaseAutoSchema):
    """Adds the error answers an operation can give."""

    def _get_response_bodies(self, direction: Any = "response") -> Any:
        responses = super()._get_response_bodies(direction=direction)
        for status in self._error_statuses():
            if status not in responses:
                responses[status] = self._get_response_for_code(  # type: ignore[no-untyped-call]
                    ErrorResponseSerializer, status
                )
        return responses

    def _error_statuses(self) -> list[str]:
        public = any(isinstance(p, AllowAny) for p in self.view.get_permissions())
        statuses = ["429"] if public else ["401", "403", "429"]
        if self.method in ("POST", "PATCH", "PUT", "DELETE"):
            statuses += ["400", "403", "409", "413", "415", "422"]
        listing = self.method == "GET" and self._is_list_view()
        if listing:
            statuses.append("400")  # a filter that is none
        # the last page has been passed, or the cursor is of another list
        if "{" in self.path or (listing and self._get_paginator() is not None):  # type: ignore[no-untyped-call]
            statuses.append("404")
        if self.method == "PATCH":
            statuses.append("412")
        return statuses


def _identity(name: str) -> Any:
    return ComponentIdentity(f"struct:{name}")  # type: ignore[no-untyped-call]


def struct_schema(auto_schema: Any, struct: Any) -> dict[str, Any]:
    """The schema of a msgspec type, with the structs it is made of registered as components."""
    (schema,), components = schema_components([struct], _REF)
    for name, body in components.items():
        component = ResolvedComponent(  # type: ignore[no-untyped-call]
            name=name, type=ResolvedComponent.SCHEMA, schema=body, object=_identity(name)
        )
        auto_schema.registry.register_on_missing(component)
    return schema


class StructFieldExtension(OpenApiSerializerFieldExtension):  # type: ignore[no-untyped-call]
    """Schema of ``StructField``."""

    target_class = "apps.core.structs.StructField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> Any:
        """The struct's schema, referring to components."""
        return struct_schema(auto_schema, self.target.struct)


class StructSerializerExtension(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Schema of ``StructSerializer``."""

    target_class = "apps.core.structs.StructSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> Any:
        """The struct's own schema; the structs it refers to become components."""
        struct_schema(auto_schema, self.target.struct)
        _, components = schema_components([self.target.struct], _REF)
        return components[self.target.struct.__name__]

    def get_name(self, auto_schema: Any, direction: Any) -> str | None:
        """The struct's: as a field of something else it is the same component."""
        return str(self.target.struct.__name__)

    def get_identity(self, auto_schema: Any, direction: Any) -> Any:
        """The struct's, so that the generator sees no clash of names."""
        return _identity(self.target.struct.__name__)


class SessionAuthenticationExtension(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Documents the session cookie."""

    target_class = "apps.core.authentication.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> Any:
        """Cookie, plus the header that changes need."""
        return {
            "type": "apiKey",
            "in": "cookie",
            "name": "sessionid",
            "description": "Sign in at /_allauth/browser/v1/auth/login. Changes need the X-CSRFToken header.",
        }


class TokenAuthenticationExtension(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """Documents API tokens."""

    target_class = "apps.accounts.authentication.TokenAuthentication"
    name = "token"

    def get_security_definition(self, auto_schema: Any) -> Any:
        """Bearer tokens, made on the profile page."""
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API token (iwb_…) of the profile page.",
        }
