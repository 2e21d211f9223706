"""Load language models and name their sites."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.hardware import is_out_of_memory
from microscope.lazy import on_first_use
from microscope.models.families import FAMILIES, Family, Tap, check_site, declared_family, module_at
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
    "declared_family",
    "dtype_name",
    "inspect_model",
    "is_out_of_memory",
    "load_model",
    "module_at",
    "resolve_device",
    "resolve_dtype",
    "runner_for",
]

# What needs transformers: it takes two seconds, and training runs no model.
__getattr__ = on_first_use(
    __name__,
    {
        "LoadedModel": "microscope.models.load",
        "inspect_model": "microscope.models.load",
        "load_model": "microscope.models.load",
        "BlockRunner": "microscope.models.runner",
        "KeyValue": "microscope.models.runner",
        "runner_for": "microscope.models.runner",
    },
)
