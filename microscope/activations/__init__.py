"""The activation store: recorded once, read many times."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from microscope.activations.manifest import BOS, OVERFLOW, SPECIAL, Manifest, SiteRecord, read_manifest
from microscope.activations.reader import Chunk, Recording
from microscope.activations.shuffled import ShuffledRows

if TYPE_CHECKING:
    from microscope.activations.recorded_model import load_recorded_model
    from microscope.activations.recorder import ActivationRecorder, record, summarise

__all__ = [
    "BOS",
    "OVERFLOW",
    "SPECIAL",
    "ActivationRecorder",
    "Chunk",
    "Manifest",
    "Recording",
    "ShuffledRows",
    "SiteRecord",
    "load_recorded_model",
    "read_manifest",
    "record",
    "summarise",
]

_HOMES = {
    "load_recorded_model": "microscope.activations.recorded_model",
    "ActivationRecorder": "microscope.activations.recorder",
    "record": "microscope.activations.recorder",
    "summarise": "microscope.activations.recorder",
}


def __getattr__(name: str) -> Any:
    """Load what runs a model on first use: whoever only reads a recording does without transformers."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'microscope.activations' has no attribute '{name}'")
