"""The activation store: recorded once, read many times."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.activations.manifest import BOS, OVERFLOW, SPECIAL, Manifest, SiteRecord, read_manifest
from microscope.activations.reader import Chunk, Recording
from microscope.activations.shuffled import ShuffledRows
from microscope.lazy import on_first_use

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

# What runs a model; reading a recording needs no transformers.
__getattr__ = on_first_use(
    __name__,
    {
        "load_recorded_model": "microscope.activations.recorded_model",
        "ActivationRecorder": "microscope.activations.recorder",
        "record": "microscope.activations.recorder",
        "summarise": "microscope.activations.recorder",
    },
)
