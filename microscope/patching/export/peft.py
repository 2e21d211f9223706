"""A change of weights as a LoRA directory in PEFT's layout. Several edits on one module are more columns."""

from __future__ import annotations

from pathlib import Path

from microscope.models import LoadedModel
from microscope.patching.peft_files import write_peft
from microscope.patching.weights import WeightChange, as_low_rank


def write_change(folder: Path, loaded: LoadedModel, change: WeightChange, base_name: str) -> int:
    """Write the directory; returns the rank. Constants are left out."""
    modules, embeddings = as_low_rank(change, loaded)
    return write_peft(folder, modules, base_name, embedding=embeddings)
