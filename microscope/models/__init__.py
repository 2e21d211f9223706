"""Load language models and name their sites."""

from microscope.models.families import FAMILIES, Family, Tap, check_site, family_of, module_at
from microscope.models.load import LoadedModel, inspect_model, load_model
from microscope.models.memory import is_out_of_memory
from microscope.models.precision import dtype_name, resolve_device, resolve_dtype
from microscope.models.runner import BlockRunner, KeyValue, runner_for
from microscope.models.tokens import TokenTexts

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
