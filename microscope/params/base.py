"""What all job parameters are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from msgspec import Struct, to_builtins

from microscope.params.presets import Preset


class JobParams(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of all job parameters. ``presets`` are measured recipes by the names that ``preset`` takes."""

    presets: ClassVar[Mapping[str, Preset]] = {}

    @classmethod
    def complete(cls, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """Data as a person gave it, with what follows from it; called before it is checked."""
        return data

    @property
    def settings(self) -> dict[str, Any]:
        """The parameters that matter here, as plain values: what is kept of a run."""
        plain: dict[str, Any] = to_builtins(self)
        return plain
