"""The activation store: recorded once, read many times."""

from microscope.activations.manifest import BOS, OVERFLOW, SPECIAL, Manifest, SiteRecord, read_manifest
from microscope.activations.reader import Chunk, Recording
from microscope.activations.recorded_model import load_recorded_model
from microscope.activations.recorder import ActivationRecorder, record, summarise
from microscope.activations.shuffled import ShuffledRows

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
