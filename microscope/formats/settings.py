"""A foreign configuration, read so that nothing in it is passed over.

A reader asks for the settings it honours by name; :meth:`Settings.finish` then refuses whatever was neither
asked for nor declared to leave the function alone. What a person says with ``--assume`` comes first, and
is recorded.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from microscope.errors import MicroscopeError

_LONGEST = 80
# Our own entry in the files of others: what was assumed stays with an SAE that is exported and comes back.
_ASSUMED_KEY = "microscope_assumed"


def names(text: str) -> frozenset[str]:
    """Names of settings, written one after the other."""
    return frozenset(text.split())


class Assumptions:
    """What a person says about settings that a reader does not know or cannot honour.

    ``KEY=VALUE`` reads the setting as if the file had that value (JSON, or else plain text); ``KEY`` alone
    says that the setting does not change what the SAE computes.

    Raises:
        MicroscopeError: ``bad_assumption`` for a text that names no setting.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._values: dict[str, tuple[bool, Any]] = {}
        self._used: dict[str, str] = {}
        for text in texts:
            key, equals, value = text.partition("=")
            if not key.strip():
                raise MicroscopeError(
                    "bad_assumption", f"'{text}' names no setting.", "Write --assume KEY or KEY=VALUE."
                )
            self._values[key.strip()] = (bool(equals), _value(value) if equals else None)

    def value(self, key: str, found: Any, *, present: bool, file: str) -> tuple[bool, Any]:
        """Whether something is assumed about a setting, and the value to read; a bare ``KEY`` is not a value."""
        given, value = self._values.get(key, (False, None))
        if not given:
            return False, None
        there = f"{shown(found)} in {file}" if present else f"absent from {file}"
        self._used[key] = f"{key}: {there}, read as {shown(value)}"
        return True, value

    def harmless(self, key: str, found: str, file: str) -> bool:
        """Whether a person said that a setting, or a tensor, does not change the function."""
        if key not in self._values:
            return False
        self._used.setdefault(key, f"{key}: {found} in {file}, taken not to change the function")
        return True

    def finish(self) -> tuple[str, ...]:
        """What was assumed, one sentence each.

        Raises:
            MicroscopeError: ``bad_assumption`` when something is assumed about a setting nobody asked for.
        """
        unused = [key for key in self._values if key not in self._used]
        if unused:
            raise MicroscopeError(
                "bad_assumption",
                f"Nothing depends on '{unused[0]}': the files do not set it and the reader does not ask for it.",
                "Write the setting as the files name it, nested ones with dots.",
            )
        return tuple(self._used.values())


def shown(value: Any) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class Settings:
    """The settings of one file, or of an object nested in it."""

    def __init__(
        self, file: str, values: Mapping[str, Any], assumptions: Assumptions, *, prefix: str = ""
    ) -> None:
        self.file = file
        self._all = values
        self._assumptions = assumptions
        self._prefix = prefix
        self._read: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return self._all.get(key) is not None

    def get(self, key: str, default: Any = None) -> Any:
        """A setting, or ``default`` where it is absent, null, or said not to matter."""
        self._read.add(key)
        found = self._all.get(key)
        name = self._prefix + key
        assumed, value = self._assumptions.value(name, found, present=key in self._all, file=self.file)
        if assumed:
            found = value
        elif key in self._all and self._assumptions.harmless(name, shown(found), self.file):
            found = None
        return default if found is None else found

    def assumed(self, key: str) -> bool:
        """Whether a person said what the setting is."""
        return self._assumptions.value(
            self._prefix + key, self._all.get(key), present=key in self._all, file=self.file
        )[0]

    def flag(self, key: str, default: bool = False) -> bool:
        """A setting that is true or false.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        """A setting that is a text.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        value = self.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def number(self, key: str, default: float | None = None) -> float | None:
        """A finite number.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        value = self.get(key, default)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) <= sys.float_info.max
        ):
            raise self._wrong(key, value, "a number")
        return float(value)

    def count(self, key: str) -> int | None:
        """A whole number above zero.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 1:
            raise self._wrong(key, value, "a whole number above 0")
        return int(value)

    def nested(self, key: str) -> Settings:
        """An object inside, empty where it is absent; its own :meth:`finish` is the reader's to call.

        Raises:
            MicroscopeError: ``bad_sae``.
        """
        value = self.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Settings(self.file, value, self._assumptions, prefix=f"{self._prefix}{key}.")

    def expect(self, key: str, *allowed: Any, default: Any = None, why: str = "it is not supported") -> Any:
        """A setting that must have one of some values.

        Raises:
            MicroscopeError: ``unsupported_setting``.
        """
        value = self.get(key, default)
        if not any(type(value) is type(a) and value == a for a in (*allowed, default)):
            raise self.unsupported(key, value, why)
        return value

    def unsupported(self, key: str, value: Any, why: str) -> MicroscopeError:
        """The error for a setting that is understood and cannot be honoured."""
        name = self._prefix + key
        return MicroscopeError(
            "unsupported_setting",
            f"{self.file} sets {name} to {shown(value)}: {why}.",
            f"If the SAE is to be read differently, import again and assume {name}=VALUE (--assume {name}=VALUE); "
            "it will be noted in the SAE.",
        )

    def finish(self, harmless: Collection[str] = ()) -> None:
        """Refuse what was neither asked for nor is known to leave the function alone.

        Args:
            harmless: settings that say how it was trained, or what it is called.

        Raises:
            MicroscopeError: ``unknown_setting``.
        """
        for key, value in self._all.items():
            name = self._prefix + key
            if key in self._read or key in harmless or value is None:
                continue
            if self._assumptions.harmless(name, shown(value), self.file):
                continue
            raise MicroscopeError(
                "unknown_setting",
                f"{self.file} sets {name} to {shown(value)}, which this reader does not know "
                "and which may change what the SAE computes.",
                f"If it does not, import again and assume {name} (--assume {name}); it will be noted in the SAE.",
            )

    def _wrong(self, key: str, value: Any, kind: str) -> MicroscopeError:
        return MicroscopeError(
            "bad_sae",
            f"{self.file} sets {self._prefix}{key} to {shown(value)}, which is not {kind}.",
            "The file is damaged, or not what it seems.",
        )


def assumed_entry(assumed: Sequence[str]) -> dict[str, Any]:
    """What a writer adds to a configuration; nothing where nothing was assumed."""
    return {_ASSUMED_KEY: list(assumed)} if assumed else {}


def stated_assumptions(settings: Settings) -> tuple[str, ...]:
    """What was assumed when the SAE came here before, in files that were written here."""
    stated = settings.get(_ASSUMED_KEY, [])
    return tuple(map(str, stated)) if isinstance(stated, list) else ()
