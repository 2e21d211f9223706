"""What installed packages add to this one: declared by entry points, without torch, and loaded when used.

A package names a declaration under one of the groups, for example in its ``pyproject.toml``::

    [project.entry-points."microscope.architectures"]
    soft = "soft_sae:ARCHITECTURE"

The declaration says what command lines, the API and forms have to know. What it does is named by a
path, ``"soft_sae.model:SoftSae"``, which is imported only where it is needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import msgspec

from microscope.errors import MicroscopeError

_log = logging.getLogger(__name__)


class Declaration(msgspec.Struct, frozen=True, kw_only=True):
    """Base of everything a package can add. ``package`` is filled in; it is empty for what is built in."""

    name: str
    description: str
    package: str = ""

    def check(self) -> None:
        """Raise an exception that says what is missing, where something is."""

    def check_beside(self, others: Collection[Any]) -> None:
        """Raise an exception that says what it shares with one of the others, where they cannot both be used."""


D = TypeVar("D", bound=Declaration)


class Registry(Mapping[str, D], Generic[D]):
    """Declarations by name: the built-in ones, then those of installed packages in the order of their names.

    What cannot be used is left out, logged, and kept in ``refused``; everything else stays available.

    Args:
        what: what one of them is called in messages, such as ``architecture``.
        group: the entry points' group.
        kind: the class of a declaration.
        built_in: those of this package.
    """

    def __init__(self, what: str, group: str, kind: type[D], built_in: Iterable[D]) -> None:
        self._what, self._group, self._kind = what, group, kind
        self._known = {declaration.name: declaration for declaration in built_in}
        for declaration in self._known.values():
            declaration.check()
        self.refused: dict[str, MicroscopeError] = {}
        found = importlib.metadata.entry_points(group=group)
        for point in sorted(found, key=lambda point: (_package(point), point.name)):
            try:
                self._known[point.name] = self._declared(point)
            # whatever a stranger's module raises must not stop this one
            except (Exception, SystemExit) as error:
                self._refuse(point, error)

    def __getitem__(self, name: str) -> D:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str) -> D:
        """The declaration of that name.

        Raises:
            MicroscopeError: ``unknown_…``, or ``bad_extension`` when an installed package's could not be used.
        """
        if name in self._known:
            return self._known[name]
        refused = self.refused.get(name)
        if refused is not None:  # a new one each time: an exception keeps the frames it is raised through
            raise MicroscopeError(refused.code, refused.message, refused.hint)
        raise MicroscopeError(
            f"unknown_{self._what.replace(' ', '_')}",
            f"There is no {self._what} '{name}'.",
            f"Known: {', '.join(self._known)}. Others come with a package that declares them.",
        )

    def _declared(self, point: importlib.metadata.EntryPoint) -> D:
        had_torch = "torch" in sys.modules
        declared = point.load()
        if "torch" in sys.modules and not had_torch:
            raise ImportError(
                "loading it imports torch, which belongs inside its functions: the portal has none"
            )
        if not isinstance(declared, self._kind):
            raise TypeError(f"{point.value} is {declared!r:.60}, not a {self._kind.__name__}")
        declared = msgspec.structs.replace(declared, package=_package(point))
        # a struct made in Python is not validated by itself
        values = {f.name: getattr(declared, f.name) for f in msgspec.structs.fields(self._kind)}
        msgspec.convert(values, type=self._kind)
        declared.check()
        if declared.name != point.name or not declared.name.isidentifier():
            raise ValueError(f"it calls itself '{declared.name}', which must be its entry point's plain name")
        if declared.name in self._known:
            owner = self._known[declared.name].package or "this program"
            raise ValueError(f"the name belongs to {owner} already")
        declared.check_beside(self._known.values())
        return declared

    def _refuse(self, point: importlib.metadata.EntryPoint, error: BaseException) -> None:
        package = _package(point)
        refusal = MicroscopeError(
            "bad_extension",
            f"The {self._what} '{point.name}' of the package {package} cannot be used: {error}.",
            f"Correct or uninstall {package}; everything else works without it.",
        )
        self.refused.setdefault(point.name, refusal)
        _log.warning("%s", refusal)


def implementation(declaration: Declaration, path: str, base: type[Any]) -> Any:
    """The class that ``path``, ``"package.module:Name"``, names; its module is imported now.

    Raises:
        MicroscopeError: ``bad_extension`` when there is no such class, its module cannot be imported, or it is not
            derived from ``base`` or leaves out what that asks for.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise TypeError(f"it is not derived from {base.__name__}")
        missing = [n for n in dir(found) if getattr(getattr(found, n, None), "__isabstractmethod__", False)]
        if missing:
            raise TypeError(f"it leaves out {', '.join(missing)}")
    except Exception as error:
        if not declaration.package:
            raise
        raise MicroscopeError(
            "bad_extension",
            f"'{declaration.name}' of the package {declaration.package} cannot be loaded from {path}: {error}.",
            f"Correct or uninstall {declaration.package}.",
        ) from error
    return found


def _package(point: importlib.metadata.EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else "of no distribution"
