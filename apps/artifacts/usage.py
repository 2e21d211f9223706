"""How much storage a project and a person use."""

from __future__ import annotations

from django.db.models import Sum

from apps.artifacts.models import Artifact, Upload
from apps.projects.quotas import Holder, register_meter


def stored_bytes(holder: Holder) -> int:
    """Bytes of a project's artifacts and of the uploads its jobs have read; of a person, those their jobs made and
    all their uploads. What a failed import has read counts until somebody removes it or its time is over."""
    project = holder.kind == "project"
    made = {"project_id": holder.id} if project else {"job__created_by_id": holder.id}
    sent = {"project_id": holder.id} if project else {"created_by_id": holder.id}
    artifacts = Artifact.objects.filter(**made).aggregate(n=Sum("bytes"))["n"] or 0
    uploads = Upload.objects.filter(**sent).aggregate(n=Sum("bytes"))["n"] or 0
    return int(artifacts + uploads)


def register() -> None:
    """Let quotas measure it."""
    register_meter("storage_bytes", stored_bytes)
