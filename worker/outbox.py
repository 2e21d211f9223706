"""The thread of a worker that sends webhooks and e-mails, so that a slow receiver holds up nothing else."""

from __future__ import annotations

import threading

import structlog
from django.db import connection

from apps.notifications.sending import send_due

log = structlog.get_logger(__name__)

LOOK_SECONDS = 2.0


class Outbox:
    """Sends what is due until told to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; what is being sent counts as not sent and is sent again by another."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                while send_due() and not self._stop.is_set():
                    pass
            except Exception as error:  # a locked database: look again
                log.warning("outbox_failed", error=str(error))
        connection.close()
