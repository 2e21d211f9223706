"""Artifacts and their files over REST."""

from __future__ import annotations

from uuid import UUID

from django.http.response import HttpResponseBase
from drf_spectacular.utils import extend_schema
from rest_framework import mixins
from rest_framework.decorators import action
from rest_framework.request import Request

from apps.artifacts import services
from apps.artifacts.archives import send_archive
from apps.artifacts.models import Artifact
from apps.artifacts.serializers import ArtifactSerializer
from apps.core.schema import ARCHIVE_ANSWERS, FILE_ANSWERS
from apps.core.views import VisibleViewSet
from apps.projects.policies import Action, require


class ArtifactViewSet(mixins.RetrieveModelMixin, VisibleViewSet):
    """Stored files of the user's projects."""

    model = Artifact
    serializer_class = ArtifactSerializer

    @extend_schema(responses=FILE_ANSWERS)
    @action(detail=True, url_path="files/<path:name>", url_name="file")
    def file(self, request: Request, pk: UUID, name: str) -> HttpResponseBase:
        """Download one file; supports a single byte range."""
        artifact: Artifact = self.get_object()
        require(self.actor, Action.DOWNLOAD, artifact.project_id)
        services.refuse_guarded(artifact)
        services.note_download(self.actor, artifact, name, request.headers.get("Range", ""))
        return services.send_file(artifact, name, range_header=request.headers.get("Range", ""))

    @extend_schema(responses=ARCHIVE_ANSWERS)
    @action(detail=True, url_path="zip")
    def archive(self, request: Request, pk: UUID) -> HttpResponseBase:
        """Download all files as one archive, made while it is sent."""
        artifact: Artifact = self.get_object()
        require(self.actor, Action.DOWNLOAD, artifact.project_id)
        services.refuse_guarded(artifact)
        services.note_download(self.actor, artifact, "zip")
        return send_archive(artifact)
