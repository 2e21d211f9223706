"""A whole installation as one folder: the database as JSON lines, which any database reads, and the files as one tar.

The rows are read first and in one transaction. Files are never changed after they were committed, so what a row
names is in the archive, whatever happens meanwhile; only what is deleted during a backup can be missing from it.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import tarfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
from django.apps.registry import Apps
from django.conf import settings
from django.core import serializers
from django.core.management import call_command
from django.core.management.color import no_style
from django.core.management.sql import emit_post_migrate_signal
from django.core.serializers import jsonl
from django.core.serializers.json import DjangoJSONEncoder
from django.db import connection, transaction
from django.db.migrations.executor import MigrationExecutor
from django.db.migrations.loader import MigrationLoader
from django.db.models import Model
from django.utils import timezone

from apps.accounts.models import User
from apps.core.errors import MicroscopeError
from apps.projects.models import Project

ROWS, FILES, MANIFEST = "database.jsonl.gz", "files.tar", "manifest.json"
# Made anew by migrations, or worth nothing elsewhere.
LEFT_OUT = ("contenttypes", "auth.permission", "sessions", "admin.logentry")


class Manifest(msgspec.Struct, kw_only=True):
    """What is in a backup."""

    version: str
    created_at: datetime
    database: str
    migrations: list[str]
    rows: dict[str, int]
    sha256: dict[str, str]


def backup(folder: Path) -> Manifest:
    """Write a backup into a new folder.

    Raises:
        MicroscopeError: ``backup_exists``.
    """
    if (folder / MANIFEST).exists():
        raise MicroscopeError(
            "backup_exists", f"There is a backup in {folder} already.", "Choose another folder."
        )
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with transaction.atomic():
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        kept = _models(_as_migrated())
        _write_rows(folder / ROWS, kept)
        rows = _count(kept)
        applied = sorted(f"{app}.{name}" for app, name in MigrationLoader(connection).applied_migrations)
    with tarfile.open(folder / FILES, "w") as archive:
        for name, root in _roots():
            if root.is_dir():
                archive.add(root, arcname=name)  # a file under two names is stored once
    manifest = Manifest(
        version=metadata.version("interpretability-workbench"),
        created_at=timezone.now(),
        database=connection.vendor,
        migrations=applied,
        rows=rows,
        sha256={name: _digest(folder / name) for name in (ROWS, FILES)},
    )
    # Last: a folder without it is no backup.
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
    return manifest


def restore(folder: Path, *, replace: bool = False) -> Manifest:
    """Bring a backup into this installation, whose database must be empty unless it is to be replaced.

    Raises:
        MicroscopeError: ``no_backup``, ``backup_damaged``, ``backup_newer``, ``not_empty``, ``backup_incomplete``.
    """
    try:
        manifest = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise MicroscopeError(
            "no_backup", f"{folder} holds no complete backup: {error}.", "Name its folder."
        ) from error
    for name, digest in manifest.sha256.items():
        if not (folder / name).is_file() or _digest(folder / name) != digest:
            raise MicroscopeError("backup_damaged", f"{name} is not what was written.", "Use another copy.")
    known = {f"{app}.{name}" for app, name in MigrationLoader(None).disk_migrations}
    beyond = sorted(set(manifest.migrations) - known)
    if beyond:
        raise MicroscopeError(
            "backup_newer",
            f"It is of a newer version ({manifest.version}): {beyond[0]} is unknown here.",
            "Upgrade first.",
        )
    if not replace and any(map(_holds_rows, (User, Project))):
        raise MicroscopeError(
            "not_empty", "This installation holds people or projects.", "Use --replace to lose them."
        )
    # Rows of an older version go into tables of that version; what migrations do to rows, they do then.
    _migrate_to(manifest.migrations)
    then = _as_migrated()
    _read_rows(folder / ROWS, then)
    for name, count in _count(_models(then)).items():
        if count != manifest.rows.get(name, count):
            raise MicroscopeError("backup_incomplete", f"{name} has {count} rows of {manifest.rows[name]}.")
    call_command("migrate", interactive=False, verbosity=0)
    roots = dict(_roots())
    with tarfile.open(folder / FILES) as archive:
        for name, root in roots.items():
            members = list(_below(archive, name))
            root.mkdir(parents=True, exist_ok=True)
            archive.extractall(root, members=members, filter="data")
    return manifest


def _below(archive: tarfile.TarFile, name: str) -> Iterator[tarfile.TarInfo]:
    """The members under a name, relative to it."""
    prefix = f"{name}/"
    for member in archive.getmembers():
        if not member.name.startswith(prefix):
            continue
        link = member.linkname.removeprefix(prefix) if member.islnk() else member.linkname
        yield member.replace(name=member.name.removeprefix(prefix), linkname=link, deep=False)


def _roots() -> list[tuple[str, Path]]:
    """The folders with files of artifacts; one inside another goes with that."""
    named = {
        "artifacts": Path(settings.WORKBENCH_ARTIFACT_DIR),
        "recordings": Path(settings.ACTIVATION_DATA_DIR),
        "saes": Path(settings.SAE_CACHE_DIR),
    }
    return [
        (name, root)
        for name, root in named.items()
        if not any(other in root.parents for other in named.values())
    ]


class _Exact(DjangoJSONEncoder):
    """Keeps the microseconds, which Django's own drops."""

    def default(self, o: Any) -> Any:
        """Times whole, all else as usual."""
        return o.isoformat() if isinstance(o, datetime) else super().default(o)


def _as_migrated() -> Apps:
    """The models as the database has them: before an upgrade it lacks tables and columns the code knows."""
    loader = MigrationLoader(connection)
    state = loader.project_state([key for key in loader.applied_migrations if key in loader.graph.nodes])
    # Rows that migrations make anew are named by what they are: their ids differ from database to database.
    for name, key in (
        ("contenttypes.ContentType", lambda row: (row.app_label, row.model)),
        ("auth.Permission", lambda row: (row.codename, row.content_type.app_label, row.content_type.model)),
    ):
        with contextlib.suppress(LookupError):
            state.apps.get_model(name).natural_key = key
    known: Apps = state.apps
    return known


def _models(known: Apps) -> list[type[Model]]:
    """Every model whose rows are kept, those others refer to first."""
    configs = {config: None for config in known.get_app_configs() if config.label not in LEFT_OUT}
    found = serializers.sort_dependencies(configs.items(), allow_cycles=True)
    kept = (model for model in found if model._meta.label_lower not in LEFT_OUT)
    return [model for model in kept if model._meta.managed and not model._meta.proxy]


def _write_rows(path: Path, kept: list[type[Model]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        rows = (row for model in kept for row in model._default_manager.order_by("pk").iterator(1000))
        serializers.serialize("jsonl", rows, stream=stream, use_natural_foreign_keys=True, cls=_Exact)


def _read_rows(path: Path, known: Apps) -> None:
    class Rows(jsonl.Deserializer):
        @staticmethod
        def _get_model_from_node(name: str) -> type[Model]:
            return known.get_model(name)

    with transaction.atomic(), connection.constraint_checks_disabled():
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            for row in Rows(stream):
                row.save()
        connection.check_constraints()
    with connection.cursor() as cursor:
        for statement in connection.ops.sequence_reset_sql(no_style(), _models(known)):
            cursor.execute(statement)


def _holds_rows(model: type[Model]) -> bool:
    """Whether there is a row, in a database of whatever version."""
    table = model._meta.db_table
    if table not in connection.introspection.table_names():
        return False
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {connection.ops.quote_name(table)} LIMIT 1")  # noqa: S608 (our own name)
        return cursor.fetchone() is not None


def _migrate_to(wanted: Sequence[str]) -> None:
    """Empty tables exactly as these migrations make them."""
    executor = MigrationExecutor(connection)
    keys = {(app, name) for app, _, name in (one.partition(".") for one in wanted)}
    if set(executor.loader.applied_migrations) == keys:
        call_command("flush", interactive=False, verbosity=0)
        return
    cascade = " CASCADE" if connection.vendor == "postgresql" else ""
    with connection.constraint_checks_disabled(), connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            cursor.execute(f"DROP TABLE IF EXISTS {connection.ops.quote_name(table)}{cascade}")
    executor = MigrationExecutor(connection)
    nodes = executor.loader.graph.node_map
    there = {key for key in keys if key in nodes}
    last = {
        key for key in there if not any(c.key[0] == key[0] and c.key in there for c in nodes[key].children)
    }
    state = executor.migrate(sorted(last))
    emit_post_migrate_signal(0, False, connection.alias, apps=state.apps, plan=[])


def _count(kept: list[type[Model]]) -> dict[str, int]:
    return {model._meta.label: model._default_manager.count() for model in kept}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
