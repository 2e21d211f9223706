"""Bundles as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.jobs.serializers import JobSerializer
from apps.projects.serializers import ProjectSerializer


class ProjectImportSerializer(serializers.Serializer[Any]):
    """A bundle to make a project of."""

    name = serializers.CharField(max_length=120, help_text="Of the new project.")
    uploads = serializers.ListField(
        child=serializers.UUIDField(),
        min_length=1,
        max_length=1,
        help_text="The finished upload of the bundle.",
    )


class ProjectJobSerializer(serializers.Serializer[Any]):
    """A project and a job about it."""

    project = ProjectSerializer()
    job = JobSerializer()


class ProjectExportSerializer(serializers.Serializer[Any]):
    """What goes along; ``params`` are those of the job kind ``export_project``."""

    params = serializers.DictField(required=False, default=dict, help_text="See /api/v1/job-kinds.")
