"""Django apps of other packages.

A package names the configuration of its app as an entry point::

    [project.entry-points."workbench.apps"]
    notes = "lab_notes.apps:NotesConfig"

The app is installed behind the portal's own. Its ``urls`` stand below ``/api/v1/LABEL/``, the ``KINDS`` of its
``kinds`` are kinds of jobs, and its migrations are the database's. A package that cannot be used stops the start with
an error that names it: without it, rows and jobs that belong to it would be in nobody's care.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from django.apps import AppConfig, apps
from django.core.exceptions import ImproperlyConfigured

GROUP = "workbench.apps"


class BrokenExtension(ImproperlyConfigured):
    """A package whose app cannot be used."""


class Extension(AppConfig):
    """What is mixed into the configuration of a package's app, so that errors name the package."""

    package: ClassVar[str]

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Say whose an error is.

        Raises:
            BrokenExtension: anything was raised inside.
        """
        with _named(self.package):
            yield

    def import_models(self) -> None:
        """Import its models."""
        with self.named():
            super().import_models()

    def ready(self) -> None:
        """Let it prepare itself."""
        with self.named():
            super().ready()


@contextlib.contextmanager
def _named(package: str) -> Iterator[None]:
    try:
        yield
    except BrokenExtension:
        raise
    except Exception as error:  # whatever a stranger's module raises
        raise BrokenExtension(
            f"The app of the package {package} cannot be used: {type(error).__name__}: {error} "
            f"Correct or uninstall {package.split()[0]}."
        ) from error


def installed() -> list[str]:
    """What belongs into ``INSTALLED_APPS`` for the packages that are installed.

    Raises:
        BrokenExtension: one names no configuration of an app.
    """
    found = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    return [_configuration(point) for point in found]


def _configuration(point: EntryPoint) -> str:
    """The path of a configuration: of the package's own class with :class:`Extension` before it."""
    package = f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
    with _named(package):
        config: Any = point.load()
        if not (isinstance(config, type) and issubclass(config, AppConfig)):
            raise TypeError(f"{point.value} is no AppConfig.")
        # Entry points may have dots and dashes in their names, attributes of a module may not.
        name = re.sub(r"\W", "_", f"{config.__name__}_of_{point.name}")
        globals()[name] = type(name, (Extension, config), {"package": package})
    return f"{__name__}.{name}"


def extensions() -> list[Extension]:
    """The apps of other packages."""
    return [config for config in apps.get_app_configs() if isinstance(config, Extension)]
