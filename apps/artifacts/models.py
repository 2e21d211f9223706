"""Stored files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import models
from django.utils import timezone

from apps.artifacts import storage
from apps.artifacts.querysets import ArtifactQuerySet, UploadQuerySet
from apps.core.hosts import this_host
from apps.core.records import Record
from apps.projects.models import Project


class Blob(models.Model):
    """A content that is in the store. ``touched_at`` is when somebody last wanted to refer to it."""

    sha256 = models.CharField(primary_key=True, max_length=64)
    bytes = models.BigIntegerField()
    touched_at = models.DateTimeField(default=timezone.now)

    objects = models.Manager["Blob"]()

    class Meta:
        ordering = ("sha256",)

    def __str__(self) -> str:
        return self.sha256[:12]


class Artifact(Record):
    """A manifest over blobs, and the folder of files it stands for: complete and unchanging from the moment
    its row exists.

    ``files`` lists them as ``{path, bytes, sha256}``; ``path`` is relative to the root of its kind; ``host`` is the
    machine they were made on.
    """

    class Kind(models.TextChoices):
        """What the files are."""

        RECORDING = "recording"
        SAE = "sae"
        EVALUATION = "evaluation"
        ANALYSIS = "analysis"
        CORPUS = "corpus"
        EXPORT = "export"
        BUNDLE = "bundle"
        PATCH_EXPORT = "patch_export"
        CERTIFICATE = "certificate"
        ADAPTER = "adapter"
        GRAPH = "graph"
        OTHER = "other"

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="artifacts")
    kind = models.CharField(max_length=12, choices=Kind.choices)
    path = models.CharField(max_length=200)
    files = models.JSONField(default=list)
    bytes = models.BigIntegerField()
    host = models.CharField(max_length=120, blank=True, default=this_host)

    objects = ArtifactQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.UniqueConstraint(fields=("kind", "path"), name="artifact_path_unique"),
            models.CheckConstraint(condition=models.Q(bytes__gte=0), name="artifact_bytes_positive"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"

    @property
    def local_path(self) -> Path:
        """Where the files are on this machine, if they are here."""
        return storage.root_of(self.kind) / self.path

    def checkout(self) -> Path:
        """The folder of its files on this machine; fetched from the store when they are not here.

        Raises:
            NotVisible: a file is gone.
            Refused: ``file_elsewhere`` when another host has it.
        """
        from apps.artifacts.blobs import materialise

        return materialise(self)

    def file(self, name: str) -> dict[str, Any] | None:
        """The listed file of that name; what is not listed cannot be asked for, whatever its path."""
        return next((entry for entry in self.files if entry["path"] == name), None)


class Upload(Record):
    """A file on its way in. It belongs to the person who sends it until a job takes it over.

    How much has arrived is the size of the file on disk and nothing else: no crash can make the two differ.
    ``path`` is its place in the folder it is part of, ``used_by`` the id of the job that reads it. ``held`` is
    whether that job may still read it: what a failed one has read is its sender's again. ``project`` is the one of
    that job, or the one the API token was bound to that sent it; ``host`` is the machine it was sent to.
    """

    created_by = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="uploads")
    project = models.ForeignKey(
        Project, null=True, blank=True, on_delete=models.CASCADE, related_name="uploads"
    )
    path = models.CharField(max_length=500)
    bytes = models.BigIntegerField()
    sha256 = models.CharField(max_length=64, blank=True, help_text="What the sender says the content is.")
    expires_at = models.DateTimeField(db_index=True)
    used_by = models.UUIDField(null=True, blank=True, db_index=True)
    held = models.BooleanField(default=False)
    host = models.CharField(max_length=120, blank=True, default=this_host)

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ("-id",)
        constraints = (
            models.CheckConstraint(condition=models.Q(bytes__gte=0), name="upload_bytes_positive"),
        )

    def __str__(self) -> str:
        return self.path

    @property
    def local_path(self) -> Path:
        """Where its bytes are."""
        return storage.upload_root() / str(self.pk)

    def count_received(self) -> int:
        """Bytes that have arrived, as the disk says; 0 when the file is gone."""
        try:
            return self.local_path.stat().st_size
        except FileNotFoundError:
            return 0

    def is_complete(self) -> bool:
        """Whether all of it is on the disk."""
        return self.count_received() == self.bytes
