"""Artifacts as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.artifacts.models import Artifact


class FileSerializer(serializers.Serializer[Any]):
    """One file of an artifact."""

    path = serializers.CharField()
    bytes = serializers.IntegerField()
    sha256 = serializers.CharField()


class ArtifactSerializer(serializers.ModelSerializer[Artifact]):
    """A folder of files."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    files = FileSerializer(many=True, read_only=True)

    class Meta:
        model = Artifact
        fields = ("id", "project", "kind", "files", "bytes", "created_at")
        read_only_fields = fields
