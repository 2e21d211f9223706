"""Tell open WebSockets what changed. Never the only copy of anything: the database is written first."""

from __future__ import annotations

import time
from typing import Any

import structlog
from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

log = structlog.get_logger(__name__)

_quiet_until = 0.0


def publish(group: str, message: dict[str, Any]) -> None:
    """Send to a group now; a broker that is down costs a log line, never the caller's work."""
    global _quiet_until
    layer = get_channel_layer()
    if layer is None or time.monotonic() < _quiet_until:
        return
    try:
        async_to_sync(layer.group_send)(group, message)
    except Exception as error:  # whatever the broker's client raises, live updates are a convenience
        # A broker that hangs would otherwise hold up every progress report by its timeout.
        _quiet_until = time.monotonic() + 2.0
        log.warning("publish_failed", group=group, error=str(error))


def publish_on_commit(group: str, message: dict[str, Any]) -> None:
    """Send to a group once the transaction around has committed."""
    transaction.on_commit(lambda: publish(group, message), robust=True)


def user_group(user_id: object) -> str:
    """Where a user's sockets hear that a session ended or a role changed."""
    return f"user.{user_id}"


def project_jobs_group(project_id: object) -> str:
    """Where the states of a project's jobs are announced."""
    return f"project.{project_id}.jobs"


def job_group(job_id: object) -> str:
    """Where one job's log lines and metrics are announced."""
    return f"job.{job_id}"


def resident_group(model_id: object) -> str:
    """Where the state of a model's resident worker is announced."""
    return f"resident.{model_id}"
