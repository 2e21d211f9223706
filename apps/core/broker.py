"""The Celery application, through which processes wake each other. ``workbench.celery`` names it to Celery's commands."""

from __future__ import annotations

from celery import Celery
from django.conf import settings

app = Celery("workbench")
app.conf.update(settings.CELERY)


def check_broker(seconds: float) -> None:
    """Connect to the broker within so many seconds.

    Raises:
        Exception: it does not answer; of what class depends on the transport.
    """
    with app.connection_for_write(connect_timeout=seconds) as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, timeout=seconds)
