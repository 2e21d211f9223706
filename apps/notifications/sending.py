"""Sending what is due, again and again until it arrives or is given up. Any number of processes may do it."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import msgspec
import structlog
from django.conf import settings
from django.core.mail import send_mail

from apps.core import clock
from apps.core.errors import MicroscopeError
from apps.notifications.models import Delivery, Webhook
from apps.notifications.outgoing import SIGNATURE, Unreachable, post, signature

log = structlog.get_logger(__name__)

# Seconds until the next try; after the last one it is given up.
RETRIES = (10, 60, 300, 1800, 7200, 21600)
PATIENCE = timedelta(minutes=5)
BATCH = 20


def send_due() -> int:
    """Try what is due; returns how many messages were tried."""
    now = clock.now()
    tried = 0
    for pk in list(Delivery.objects.due(now).order_by("due_at").values_list("pk", flat=True)[:BATCH]):
        # The condition lets one of several senders have it.
        if Delivery.objects.filter(pk=pk).due(now).update(taken_until=clock.now() + PATIENCE):
            _try(pk)
            tried += 1
    return tried


def _try(pk: UUID) -> None:
    delivery = Delivery.objects.select_related("webhook", "notification__user").get(pk=pk)
    status, error, hopeless, cause = None, "", False, ""
    try:
        if delivery.webhook is not None:
            status = _call(delivery, delivery.webhook)
            if not 200 <= status < 300:
                error = f"The answer was {status}."
                hopeless = status == 410
        else:
            _mail(delivery)
    except Unreachable as problem:
        error, cause = str(problem), repr(problem.__cause__)
    except MicroscopeError as problem:
        error, hopeless = problem.message, True
    except Exception as problem:  # whatever a mail server's client raises
        error, cause = "It could not be sent; the server's log says why.", repr(problem)
    if error:
        log.warning(
            "delivery_failed",
            delivery=str(delivery.pk),
            attempt=delivery.attempts + 1,
            error=error,
            cause=cause,
        )
    _note(delivery, status, error, hopeless)


def _call(delivery: Delivery, hook: Webhook) -> int:
    content = {
        "id": str(delivery.pk),
        "event": delivery.event,
        "created_at": delivery.created_at,
        "project": str(hook.project_id),
        "data": delivery.payload,
    }
    body = msgspec.json.encode(content)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "InterpretabilityWorkbench",
        "X-Workbench-Event": delivery.event,
        "X-Workbench-Delivery": str(delivery.pk),
        SIGNATURE: signature(hook.secret, body),
    }
    return post(hook.url, body, headers)


def _mail(delivery: Delivery) -> None:
    note = delivery.notification
    assert note is not None
    link = settings.WORKBENCH_PUBLIC_URL
    if note.subject_type == "job":
        link += f"/jobs/{note.subject_id}"
    # One line: a title must not become headers.
    send_mail(" ".join(note.title.split()), f"{note.message}\n\n{link}\n", None, [note.user.email])


def _note(delivery: Delivery, status: int | None, error: str, hopeless: bool) -> None:
    now = clock.now()
    attempts = delivery.attempts + 1
    values: dict[str, object] = {"attempts": attempts, "status": status, "error": error, "taken_until": None}
    if not error:
        values |= {"state": Delivery.State.DELIVERED, "delivered_at": now}
    elif hopeless or attempts > len(RETRIES):
        values |= {"state": Delivery.State.FAILED}
    else:
        values |= {"due_at": now + timedelta(seconds=RETRIES[attempts - 1])}
    Delivery.objects.filter(pk=delivery.pk, state=Delivery.State.PENDING).update(**values)
