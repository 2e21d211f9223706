"""The signed-in person and their API tokens as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.accounts.models import ApiToken, User
from apps.accounts.scopes import MEANING, Scope


class MeSerializer(serializers.ModelSerializer[User]):
    """Who is signed in."""

    class Meta:
        model = User
        fields = ("id", "username", "email", "first_name", "last_name", "is_staff")
        read_only_fields = fields


class TokenSerializer(serializers.ModelSerializer[ApiToken]):
    """An API token without its secret. ``key`` is the readable part of its text."""

    scopes = serializers.ListField(child=serializers.ChoiceField(choices=[s.value for s in Scope]))
    project = serializers.UUIDField(source="project_id", allow_null=True, read_only=True)
    project_name = serializers.CharField(source="project.name", allow_null=True, default=None, read_only=True)
    expired = serializers.BooleanField(read_only=True)

    class Meta:
        model = ApiToken
        fields = (
            "id",
            "name",
            "key",
            "scopes",
            "project",
            "project_name",
            "created_at",
            "expires_at",
            "expired",
            "last_used_at",
            "rotated_at",
        )
        read_only_fields = fields


class TokenCreateSerializer(serializers.Serializer[Any]):
    """What a token is to be for. ``read`` is always part of it."""

    name = serializers.CharField(max_length=80)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=[s.value for s in Scope]),
        max_length=len(Scope),
        help_text=" ".join(f"{scope}: {meaning}" for scope, meaning in MEANING.items()),
    )
    project = serializers.UUIDField(required=False, allow_null=True, help_text="Bind it to one project.")
    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class TokenRotateSerializer(serializers.Serializer[Any]):
    """How long the new secret lives; by default as long as the old one was made for."""

    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class TokenSecretSerializer(serializers.Serializer[Any]):
    """A token with its text, which is shown this once."""

    token = TokenSerializer()
    secret = serializers.CharField()


class TicketSerializer(serializers.Serializer[Any]):
    """Append ``?ticket=…`` to the address of a WebSocket; works once, and soon."""

    ticket = serializers.CharField()
    expires_at = serializers.DateTimeField()


class MeUpdateSerializer(serializers.ModelSerializer[User]):
    """What people may change of themselves here; passwords and second factors are changed at their own addresses."""

    class Meta:
        model = User
        fields = ("first_name", "last_name")
