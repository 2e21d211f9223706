"""A whole checkpoint with the patch in its weights: loads wherever the base model does."""

from __future__ import annotations

from pathlib import Path

import torch

from microscope.models import LoadedModel, load_model
from microscope.patching.weights import WeightChange, change_weights


def write_merged(folder: Path, loaded: LoadedModel, change: WeightChange, dtype: str) -> bool:
    """Write configuration, safetensors weights and tokenizer; returns whether embedding and head were untied."""
    # An own copy: the loaded model's weights are never written.
    own = load_model(loaded.reference, revision=loaded.revision, dtype="float32", device="cpu")
    untied = change_weights(own.model, own.family, change)
    model = own.model.to(getattr(torch, dtype))
    model.config.dtype = getattr(torch, dtype)
    # The embedding of a causal model counts as its head's when tied; saving keeps one copy then.
    model.save_pretrained(folder, safe_serialization=True)
    own.tokenizer.save_pretrained(folder)
    return untied
