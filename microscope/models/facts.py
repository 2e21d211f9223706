"""Sizes of a model, taken from its modules: configurations have many names for them, and some have none."""

from __future__ import annotations

from typing import Any

from microscope.models.families import Family


def n_layers(model: Any, family: Family) -> int:
    """How many blocks a model (or its skeleton) has."""
    return len(model.get_submodule(family.blocks))


def d_model(model: Any) -> int:
    """Width of the residual stream."""
    stated = getattr(model.config, "hidden_size", None)
    # A model of several parts states the width of each; the head reads the last one's stream.
    return int(stated if isinstance(stated, int) else model.get_output_embeddings().in_features)


def vocab_size(model: Any) -> int:
    """How many token ids there are."""
    stated = getattr(model.config, "vocab_size", None)
    return int(stated if isinstance(stated, int) else model.get_input_embeddings().num_embeddings)
