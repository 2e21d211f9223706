"""How much storage a project and a person use."""

from __future__ import annotations

from django.db.models import Sum

from apps.artifacts.models import Artifact, Upload
from apps.projects.quotas import Holder, register_meter


def stored_bytes(holder: Holder) -> int:
    """Bytes of a project's artifacts; of a person, those their jobs made and their uploads."""
    mine = {"project_id": holder.id} if holder.kind == "project" else {"job__created_by_id": holder.id}
    total = Artifact.objects.filter(**mine).aggregate(n=Sum("bytes"))["n"] or 0
    if holder.kind == "user":
        total += Upload.objects.filter(created_by_id=holder.id).aggregate(n=Sum("bytes"))["n"] or 0
    return int(total)


def register() -> None:
    """Let quotas measure it."""
    register_meter("storage_bytes", stored_bytes)
