"""Writing to the audit log."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db.models import Model

from apps.audit.models import AuditEvent


def record(
    *,
    actor: Any,
    action: str,
    target: Model,
    project_id: UUID | None = None,
    data: dict[str, Any] | None = None,
) -> AuditEvent:
    """Write one event; call it in the transaction of the change it describes.

    Args:
        actor: the user, or None for the system itself. The API token they came with is noted, too.
        action: ``noun.verb`` in the past tense, e.g. ``patch.toggled``.
    """
    token = getattr(actor, "token", None)
    return AuditEvent.objects.create(
        actor=actor,
        actor_name=actor.get_username() if actor is not None else "system",
        token_id=token.pk if token is not None else None,
        token_name=str(token)[:100] if token is not None else "",
        action=action,
        project_id=project_id,
        target_type=target._meta.model_name or "",
        target_id=str(target.pk),
        target_name=str(target)[:200],
        data=data or {},
    )
