"""Change what a model does through its features."""

from __future__ import annotations

from typing import TYPE_CHECKING

from microscope.lazy import on_first_use

if TYPE_CHECKING:
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

# What needs torch: the kinds of edits below this package are loaded without it.
__getattr__ = on_first_use(
    __name__,
    {
        "EditEffect": "microscope.patching.apply",
        "LoRAPatcher": "microscope.patching.lora",
        "LowRank": "microscope.patching.adapters",
        "LowRankAdapter": "microscope.patching.adapters",
        "SiteEdits": "microscope.patching.apply",
        "check_references": "microscope.patching.apply",
        "edits_by_layer": "microscope.patching.apply",
        "load_adapter": "microscope.patching.adapters",
        "save_adapter": "microscope.patching.adapters",
    },
)
