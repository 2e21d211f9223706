"""Telling somebody something, and the webhooks of projects."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import Model

from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import Refused
from apps.core.etags import lock_unchanged
from apps.core.publish import publish_on_commit, user_group
from apps.notifications.models import Delivery, Notification, Preference, Webhook
from apps.notifications.outgoing import check_url
from apps.projects.models import Project
from apps.projects.policies import Action, can, require

EVENTS = ("job.succeeded", "job.failed", "job.cancelled", "pipeline.finished")
PING = "ping"
MAX_WEBHOOKS = 20


def notify(
    *,
    user: Any,
    kind: str,
    title: str,
    message: str = "",
    level: str = Notification.Level.INFO,
    project: Project | None = None,
    subject: Model | None = None,
) -> Notification | None:
    """Tell a person something, by e-mail too if they want that. None when they may no longer know.

    Call it in the transaction of what happened.
    """
    if not user.is_active or (project is not None and not can(user, Action.VIEW, project)):
        return None
    row = Notification.objects.create(
        user=user,
        project=project,
        kind=kind,
        level=level,
        title=title[:250],
        message=message,
        subject_type=subject._meta.model_name or "" if subject is not None else "",
        subject_id=subject.pk if subject is not None else None,
    )
    wish = Preference.objects.filter(user=user).values_list("email", flat=True).first()
    problem = level in (Notification.Level.WARNING, Notification.Level.ERROR)
    if user.email and (wish == Preference.Email.ALL or (wish == Preference.Email.PROBLEMS and problem)):
        Delivery.objects.create(notification=row, event=kind, due_at=clock.now())
    publish_on_commit(user_group(user.pk), {"type": "notifications.changed"})
    return row


def emit(*, project_id: UUID, event: str, data: dict[str, Any]) -> int:
    """Queue an event for every webhook of the project that wants it; returns how many do."""
    hooks = [
        hook for hook in Webhook.objects.filter(project_id=project_id, enabled=True) if event in hook.events
    ]
    if hooks:
        now = clock.now()
        Delivery.objects.bulk_create(
            Delivery(webhook=hook, event=event, payload=data, due_at=now) for hook in hooks
        )
    return len(hooks)


@transaction.atomic
def mark_read(*, user: Any, ids: Sequence[UUID] | None = None) -> int:
    """Mark notifications as read, all of them without ``ids``; returns how many were unread."""
    rows = Notification.objects.filter(user=user).unread()
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    changed = rows.update(read_at=clock.now())
    if changed:
        publish_on_commit(user_group(user.pk), {"type": "notifications.changed"})
    return changed


# --- webhooks ---------------------------------------------------------------------------------------------


def check_events(events: Sequence[str]) -> list[str]:
    """Known names of events, each once.

    Raises:
        Refused: ``unknown_event`` or ``no_events``.
    """
    unknown = [event for event in events if event not in EVENTS]
    if unknown:
        raise Refused(
            "unknown_event",
            f"There is no event '{unknown[0][:60]}'.",
            f"There are {', '.join(EVENTS)}.",
            status=400,
            attr="events",
        )
    if not events:
        raise Refused("no_events", "Name at least one event.", status=400, attr="events")
    return [event for event in EVENTS if event in events]


@transaction.atomic
def create_webhook(*, actor: Any, project: Project, url: str, events: Sequence[str]) -> Webhook:
    """Have an address told of events of a project. Its secret is in the answer and never shown again.

    Raises:
        Refused: ``bad_url``, ``private_address``, ``unknown_event``, ``no_events``, ``too_many_webhooks``.
    """
    require(actor, Action.MANAGE, project)
    check_url(url)
    if Webhook.objects.filter(project=project).count() >= MAX_WEBHOOKS:
        raise Refused("too_many_webhooks", f"{MAX_WEBHOOKS} webhooks per project are the limit.", status=409)
    hook = Webhook.objects.create(
        project=project,
        created_by=actor,
        url=url,
        events=check_events(events),
        secret=f"whsec_{secrets.token_urlsafe(32)}",
    )
    audit.record(actor=actor, action="webhook.added", target=hook, project_id=project.pk)
    return hook


@transaction.atomic
def update_webhook(
    *, actor: Any, hook: Webhook, changes: dict[str, Any], made_from: str | None = None
) -> Webhook:
    """Change address, events or switch.

    Args:
        made_from: the ETag the changes were made from.

    Raises:
        Conflict: somebody changed it since.
        Refused: as for a new one.
    """
    require(actor, Action.MANAGE, hook.project_id)
    hook = lock_unchanged(hook, made_from)
    if "url" in changes:
        check_url(changes["url"])
    if "events" in changes:
        changes["events"] = check_events(changes["events"])
    for name, value in changes.items():
        setattr(hook, name, value)
    hook.save(update_fields=list(changes) or None)
    audit.record(actor=actor, action="webhook.changed", target=hook, project_id=hook.project_id)
    return hook


@transaction.atomic
def delete_webhook(*, actor: Any, hook: Webhook) -> None:
    """Stop telling an address."""
    require(actor, Action.MANAGE, hook.project_id)
    audit.record(actor=actor, action="webhook.deleted", target=hook, project_id=hook.project_id)
    hook.delete()


def ping_webhook(*, actor: Any, hook: Webhook) -> Delivery:
    """Queue a message that only tests the way."""
    require(actor, Action.MANAGE, hook.project_id)
    return Delivery.objects.create(
        webhook=hook, event=PING, payload={"webhook": str(hook.pk)}, due_at=clock.now()
    )
