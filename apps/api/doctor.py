"""What is wrong with this installation, each thing with its remedy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from django.apps import apps as registry
from django.conf import settings
from django.db import connection

from apps.api.operations import pending_migrations
from apps.api.state import disk_space
from apps.artifacts.models import Artifact
from apps.core.broker import check_broker
from apps.core.errors import MicroscopeError
from apps.jobs.models import Job, WorkerNode
from apps.jobs.states import State

LOW_BYTES = 5 * 2**30
LOOKED_AT = 50


class Finding(NamedTuple):
    """One thing that was looked at. ``level`` is ok, warning or error; only errors fail the check."""

    name: str
    level: str
    text: str
    remedy: str = ""


def examine(*, stopped: bool = False) -> Iterator[Finding]:
    """Look at everything; a check that breaks is a finding itself.

    Args:
        stopped: the servers are meant to be down, so nobody asks whether they answer.
    """
    for name, check in CHECKS.items():
        if stopped and name in OF_SERVERS:
            continue
        try:
            yield from check()
        except Exception as error:  # a broken database breaks most of them: say so and go on
            yield Finding(
                name, "error", f"{type(error).__name__}: {error}", "Correct what is named above first."
            )


def _database() -> Iterator[Finding]:
    try:
        connection.ensure_connection()
    except Exception as error:
        yield Finding(
            "database", "error", f"It cannot be reached: {error}", "Check DATABASE_URL and that it runs."
        )
        return
    vendor = connection.vendor
    yield Finding("database", "ok", f"{vendor} answers.")
    if vendor == "sqlite":
        path = Path(connection.settings_dict["NAME"])
        if path.exists() and not os.access(path.parent, os.W_OK):
            yield Finding(
                "database", "error", f"{path.parent} is not writable.", f"chown it to user {os.getuid()}."
            )


def _migrations() -> Iterator[Finding]:
    pending = pending_migrations()
    if pending:
        yield Finding(
            "migrations",
            "error",
            f"{len(pending)} are missing, {pending[0]} first.",
            "Run `python manage.py upgrade`.",
        )
    else:
        yield Finding("migrations", "ok", "The database is of this version.")


def _broker() -> Iterator[Finding]:
    try:
        check_broker(seconds=2)
    except Exception as error:
        yield Finding(
            "broker",
            "error",
            f"It does not answer: {error}",
            "Start Valkey and check REDIS_URL; no job is lost.",
        )
    else:
        yield Finding("broker", "ok", "It answers.")


def _workers() -> Iterator[Finding]:
    alive = WorkerNode.objects.alive(settings.WORKBENCH_LEASE_SECONDS).count()
    queued = Job.objects.filter(state=State.QUEUED).count()
    if alive:
        yield Finding(
            "workers", "ok", f"{alive} compute worker{'' if alive == 1 else 's'}, {queued} jobs queued."
        )
    else:
        yield Finding(
            "workers",
            "error" if queued else "warning",
            f"No compute worker was heard of lately; {queued} jobs wait.",
            "Start one: celery -A workbench worker.",
        )
    python = settings.WORKBENCH_ENGINE_PYTHON
    if shutil.which(python) is None:
        yield Finding(
            "workers",
            "warning",
            f"There is no {python} here.",
            "Set WORKBENCH_ENGINE_PYTHON on compute hosts.",
        )


def _residents() -> Iterator[Finding]:
    rows = registry.get_model("live", "ResidentWorker")._default_manager
    for row in rows.filter(state__in=("failed", "lost")).select_related("model"):
        yield Finding("residents", "warning", f"{row.model}: {row.error_message}", row.error_hint)
    ready = rows.filter(state="ready").count()
    yield Finding("residents", "ok", f"{ready} models are in memory.")


def _disk() -> Iterator[Finding]:
    folder = Path(settings.WORKBENCH_DATA_DIR)
    space = disk_space(folder)
    text = f"{space.free / 2**30:.1f} GiB of {space.total / 2**30:.0f} GiB are free at {folder}."
    if space.free < LOW_BYTES:
        yield Finding(
            "disk",
            "error" if space.free < LOW_BYTES / 10 else "warning",
            text,
            "Delete recordings or run `manage.py collect_garbage`.",
        )
    else:
        yield Finding("disk", "ok", text)
    for path in (folder, Path(settings.WORKBENCH_ARTIFACT_DIR), Path(settings.WORKBENCH_JOB_DIR)):
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            yield Finding("disk", "error", f"{path} is not writable.", f"chown -R {os.getuid()} {path}")


def _artifacts() -> Iterator[Finding]:
    looked = missing = 0
    for artifact in Artifact.objects.order_by("-id")[:LOOKED_AT]:
        looked += 1
        try:
            folder = artifact.checkout()
            broken = [f for f in artifact.files if (folder / f["path"]).stat().st_size != f["bytes"]]
        except (MicroscopeError, OSError):
            broken = ["all"]
        if broken:
            missing += 1
            yield Finding(
                "artifacts",
                "error",
                f"Files of {artifact.pk} are gone or cut short.",
                "Restore them from a backup.",
            )
    if not missing:
        yield Finding("artifacts", "ok", f"The newest {looked} are whole.")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "database": _database,
    "migrations": _migrations,
    "broker": _broker,
    "workers": _workers,
    "residents": _residents,
    "disk": _disk,
    "artifacts": _artifacts,
}
OF_SERVERS = frozenset({"broker", "workers", "residents"})
