"""A change of weights as a LoRA directory in PEFT's layout. Several edits on one module are more columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from microscope.models import LoadedModel
from microscope.patching.adapters import LowRank
from microscope.patching.peft_files import write_peft
from microscope.patching.weights import WeightChange, as_low_rank


def write_change(folder: Path, loaded: LoadedModel, change: WeightChange, base_name: str) -> int:
    """Write the directory; returns the rank. Constants are left out."""
    embedding = {} if change.span is None else _embedding(loaded, change.span)
    return write_peft(folder, as_low_rank(change, loaded), base_name, embedding=embedding)


def _embedding(loaded: LoadedModel, span: Tensor) -> dict[str, LowRank]:
    """The projection of the embedding's rows, by its path."""
    embedding: Any = loaded.model.get_input_embeddings()
    path = next(name for name, module in loaded.model.named_modules() if module is embedding)
    return {path: LowRank((embedding.weight.float() @ span).T, -span)}
