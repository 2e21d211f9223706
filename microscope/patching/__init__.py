"""Change what a model does through its features."""

from microscope.patching.adapters import LowRank, LowRankAdapter, load_adapter, save_adapter
from microscope.patching.apply import EditEffect, SiteEdits, check_references, edits_by_layer
from microscope.patching.lora import LoRAPatcher

__all__ = [
    "EditEffect",
    "LoRAPatcher",
    "LowRank",
    "LowRankAdapter",
    "SiteEdits",
    "check_references",
    "edits_by_layer",
    "load_adapter",
    "save_adapter",
]
