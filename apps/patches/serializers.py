"""Patches as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.core.etags import EtagField
from apps.core.structs import StructField, StructSerializer
from apps.core.views import VisibleField
from apps.patches.models import Patch, PatchVersion
from apps.registry.models import LanguageModel
from microscope.params import EditKind, EditPlan


class EditKindSerializer(StructSerializer):
    """A kind of edit: what it does, what it is made from, and how its strength is counted."""

    struct = EditKind


class PatchSerializer(serializers.ModelSerializer[Patch]):
    """A patch. ``fingerprint`` is empty when the plan changes nothing."""

    project = serializers.UUIDField(source="project_id", read_only=True)
    model = serializers.UUIDField(source="model_id", read_only=True)
    model_name = serializers.CharField(source="model.name", read_only=True)
    plan = StructField(EditPlan, read_only=True)
    etag = EtagField()
    created_by = serializers.CharField(
        source="created_by.username", read_only=True, default=None, allow_null=True
    )

    class Meta:
        model = Patch
        fields = (
            "id",
            "project",
            "model",
            "model_name",
            "name",
            "description",
            "plan",
            "enabled",
            "version",
            "etag",
            "fingerprint",
            "created_by",
            "created_at",
            "updated_at",
        )
        read_only_fields = fields


class PatchCreateSerializer(serializers.Serializer[Any]):
    """A patch to make."""

    model = VisibleField(LanguageModel)
    name = serializers.CharField(max_length=120)
    description = serializers.CharField(max_length=4000, required=False, allow_blank=True, default="")
    plan = StructField(EditPlan)
    enabled = serializers.BooleanField(required=False, default=True)


class PatchUpdateSerializer(serializers.Serializer[Any]):
    """What can be changed of a patch."""

    name = serializers.CharField(max_length=120, required=False)
    description = serializers.CharField(max_length=4000, required=False, allow_blank=True)
    plan = StructField(EditPlan, required=False)
    enabled = serializers.BooleanField(required=False)


class PatchToggleSerializer(serializers.Serializer[Any]):
    """On or off."""

    enabled = serializers.BooleanField()


class PatchRestoreSerializer(serializers.Serializer[Any]):
    """Which version."""

    version = serializers.IntegerField(min_value=1)


class PatchVersionSerializer(serializers.ModelSerializer[PatchVersion]):
    """A patch as it was after one change."""

    plan = StructField(EditPlan, read_only=True)
    author = serializers.CharField(source="author.username", read_only=True, default=None, allow_null=True)

    class Meta:
        model = PatchVersion
        fields = (
            "version",
            "name",
            "description",
            "plan",
            "enabled",
            "fingerprint",
            "change",
            "author",
            "created_at",
        )
        read_only_fields = fields
