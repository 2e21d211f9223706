"""Environment variables, each declared once with its type, default and description.

``Env`` remembers what it was asked, so the reference table of all settings is printed from the code
that reads them. A variable that holds a secret can also be given as ``NAME_FILE``, the path of a file
with the value.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

T = TypeVar("T")

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclasses.dataclass(frozen=True)
class Variable:
    """One documented environment variable."""

    name: str
    type: str
    default: str
    description: str


class Env:
    """Typed reader of environment variables that keeps the list of everything it read."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self.variables: dict[str, Variable] = {}

    def reference_table(self) -> str:
        """All variables read so far as a Markdown table."""
        lines = ["| variable | type | default | meaning |", "|---|---|---|---|"]
        for variable in sorted(self.variables.values(), key=lambda v: v.name):
            default = f"`{variable.default}`" if variable.default else "–"
            lines.append(f"| `{variable.name}` | {variable.type} | {default} | {variable.description} |")
        return "\n".join(lines)

    def _read(
        self, name: str, kind: str, default: T, description: str, parse: Callable[[str], T], shown: str | None
    ) -> T:
        text = str(default) if shown is None else shown
        self.variables[name] = Variable(name, kind, text, description)
        raw = self._environ.get(name)
        if raw is None or raw == "":
            return default
        try:
            return parse(raw)
        except ValueError as error:
            raise ImproperlyConfigured(f"{name}={raw!r} is no {kind}: {error}") from error

    def text(self, name: str, default: str, description: str, *, shown: str | None = None) -> str:
        """A string. ``shown`` replaces the default in the documentation."""
        return self._read(name, "text", default, description, str, shown)

    def secret(self, name: str, default: str, description: str) -> str:
        """A string that may come from the file named by ``NAME_FILE``; its default is never shown."""
        path = self._environ.get(f"{name}_FILE")
        value = self._read(name, "secret", default, description, str, "generated" if default else "")
        if path:
            try:
                return Path(path).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ImproperlyConfigured(f"{name}_FILE={path!r} cannot be read: {error}") from error
        return value

    def integer(self, name: str, default: int, description: str) -> int:
        """A whole number."""
        return self._read(name, "integer", default, description, int, None)

    def seconds(self, name: str, default: float, description: str) -> float:
        """A positive duration in seconds."""

        def parse(raw: str) -> float:
            value = float(raw)
            if not value > 0:
                raise ValueError("must be above 0")
            return value

        return self._read(name, "seconds", default, description, parse, f"{default:.15g}")

    def flag(self, name: str, default: bool, description: str) -> bool:
        """A yes or no."""

        def parse(raw: str) -> bool:
            word = raw.strip().lower()
            if word in _TRUE or word in _FALSE:
                return word in _TRUE
            raise ValueError("use 1 or 0")

        return self._read(name, "flag", default, description, parse, "1" if default else "0")

    def choice(self, name: str, default: str, options: tuple[str, ...], description: str) -> str:
        """One of a few words."""

        def parse(raw: str) -> str:
            if raw not in options:
                raise ValueError(f"use {' or '.join(options)}")
            return raw

        return self._read(name, "choice", default, f"{description} ({', '.join(options)})", parse, None)

    def path(self, name: str, default: Path, description: str, *, shown: str | None = None) -> Path:
        """A folder or file, made absolute."""
        return self._read(
            name, "path", default, description, lambda raw: Path(raw).expanduser().absolute(), shown
        )

    def paths(
        self, name: str, default: tuple[Path, ...], description: str, *, shown: str
    ) -> tuple[Path, ...]:
        """Folders separated by the system's path separator."""

        def parse(raw: str) -> tuple[Path, ...]:
            return tuple(Path(p).expanduser().absolute() for p in raw.split(os.pathsep) if p)

        return self._read(name, "paths", default, description, parse, shown)

    def words(self, name: str, default: tuple[str, ...], description: str) -> tuple[str, ...]:
        """A comma-separated list."""

        def parse(raw: str) -> tuple[str, ...]:
            return tuple(word.strip() for word in raw.split(",") if word.strip())

        return self._read(name, "list", default, description, parse, ",".join(default))


# Of this process: what the modules beside this one read their variables from.
env = Env()


def database_config(url: str) -> dict[str, Any]:
    """Django's ``DATABASES`` entry for a ``sqlite:///path`` or ``postgresql://user:pass@host/name`` URL.

    SQLite runs in write-ahead mode with IMMEDIATE transactions: a deferred transaction that turns from
    reading to writing fails at once with "database is locked", whatever the timeout.

    Raises:
        ImproperlyConfigured: the scheme is neither.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": unquote(parts.path[1:]) or ":memory:",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "timeout": 20,
                "init_command": (
                    "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-2000;"
                    "PRAGMA temp_store=MEMORY; PRAGMA journal_size_limit=67108864;"
                ),
            },
        }
    if parts.scheme in ("postgres", "postgresql"):
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": unquote(parts.path[1:]),
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": parts.hostname or "",
            "PORT": str(parts.port or ""),
            "OPTIONS": dict(parse_qsl(parts.query)),
        }
    raise ImproperlyConfigured(
        f"DATABASE_URL has scheme {parts.scheme!r}; use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME"
    )


def artifact_storage(url: str, endpoint: str) -> dict[str, dict[str, Any]]:
    """The entry ``artifacts`` of Django's ``STORAGES`` for ``s3://BUCKET/PREFIX``; none for an empty text.

    Raises:
        ImproperlyConfigured: the scheme is another one.
    """
    if not url:
        return {}
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ImproperlyConfigured(f"WORKBENCH_ARTIFACT_STORE={url!r} is no s3://BUCKET/PREFIX")
    options = {
        "bucket_name": parts.netloc,
        "location": parts.path.strip("/"),
        "endpoint_url": endpoint or None,
        "default_acl": None,
        "file_overwrite": True,
        "querystring_auth": True,
        "querystring_expire": 300,
    }
    return {"artifacts": {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}}


def email_config(url: str) -> dict[str, Any]:
    """Django's ``EMAIL_…`` settings for ``console://``, ``file:///folder`` or ``smtp://user:pass@host:port``.

    ``smtps://`` speaks TLS from the start (port 465), ``smtp://…?starttls=0`` does without it (port 587).

    Raises:
        ImproperlyConfigured: any other scheme, or no host.
    """
    parts, backends = urlsplit(url), "django.core.mail.backends"
    if parts.scheme == "console":
        return {"EMAIL_BACKEND": f"{backends}.console.EmailBackend"}
    if parts.scheme == "file" and parts.path:
        return {
            "EMAIL_BACKEND": f"{backends}.filebased.EmailBackend",
            "EMAIL_FILE_PATH": unquote(parts.path),
        }
    if parts.scheme in ("smtp", "smtps") and parts.hostname:
        ssl = parts.scheme == "smtps"
        return {
            "EMAIL_BACKEND": f"{backends}.smtp.EmailBackend",
            "EMAIL_HOST": parts.hostname,
            "EMAIL_PORT": parts.port or (465 if ssl else 587),
            "EMAIL_HOST_USER": unquote(parts.username or ""),
            "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
            "EMAIL_USE_SSL": ssl,
            "EMAIL_USE_TLS": not ssl and dict(parse_qsl(parts.query)).get("starttls", "1") != "0",
            "EMAIL_TIMEOUT": 10,
        }
    raise ImproperlyConfigured(
        f"WORKBENCH_EMAIL_URL has scheme {parts.scheme!r}; use console://, file:///FOLDER or smtp://USER:PASSWORD@HOST"
    )


def broker_url(redis_url: str) -> str:
    """The same server as Celery spells it: a Unix socket is ``redis+socket://`` there, ``unix://`` elsewhere."""
    if redis_url.startswith("unix://"):
        path, _, query = redis_url.removeprefix("unix://").partition("?")
        database = dict(parse_qsl(query)).get("db", "0")
        return f"redis+socket://{path}?virtual_host={database}"
    return redis_url


def generated_secret(path: Path) -> str:
    """The key kept in ``path``, made on first use and readable by its owner only."""
    from django.core.management.utils import get_random_secret_key

    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may start at once: the link either creates the file whole or finds the winner's.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(get_random_secret_key())
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text(encoding="utf-8").strip()
