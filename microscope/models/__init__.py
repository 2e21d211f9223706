"""Load language models and name their sites."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from microscope.hardware import is_out_of_memory
from microscope.models.families import FAMILIES, Family, Tap, check_site, family_of, module_at
from microscope.models.precision import dtype_name, resolve_device, resolve_dtype
from microscope.models.tokens import TokenTexts

if TYPE_CHECKING:
    from microscope.models.load import LoadedModel, inspect_model, load_model
    from microscope.models.runner import BlockRunner, KeyValue, runner_for

__all__ = [
    "FAMILIES",
    "BlockRunner",
    "Family",
    "KeyValue",
    "LoadedModel",
    "Tap",
    "TokenTexts",
    "check_site",
    "dtype_name",
    "family_of",
    "inspect_model",
    "is_out_of_memory",
    "load_model",
    "module_at",
    "resolve_device",
    "resolve_dtype",
    "runner_for",
]

_HOMES = {
    "LoadedModel": "microscope.models.load",
    "inspect_model": "microscope.models.load",
    "load_model": "microscope.models.load",
    "BlockRunner": "microscope.models.runner",
    "KeyValue": "microscope.models.runner",
    "runner_for": "microscope.models.runner",
}


def __getattr__(name: str) -> Any:
    """Load what needs transformers on first use: it takes two seconds, and training runs no model."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'microscope.models' has no attribute '{name}'")
