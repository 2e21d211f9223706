"""Open a language model, find the features it computes with, and change what it does through them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from microscope.activations import ActivationRecorder
    from microscope.features import FeatureAnalyzer
    from microscope.patching import LoRAPatcher
    from microscope.sae import SparseAutoencoder
    from microscope.training import train_sae

__version__ = "0.1.0"
__all__ = ["ActivationRecorder", "FeatureAnalyzer", "LoRAPatcher", "SparseAutoencoder", "train_sae"]

_HOMES = {
    "ActivationRecorder": "microscope.activations",
    "train_sae": "microscope.training",
    "FeatureAnalyzer": "microscope.features",
    "LoRAPatcher": "microscope.patching",
    "SparseAutoencoder": "microscope.sae",
}


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that ``microscope.params`` costs no torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'microscope' has no attribute '{name}'")
