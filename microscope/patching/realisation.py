"""What export targets can hold of patches of a loaded model, judged by what writes to its stream."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, module_at
from microscope.models.obstacles import biases_by_switch, is_tied, renamed_by_peft
from microscope.params import (
    EXPORT_TARGETS,
    Edit,
    EditPlan,
    ExportTarget,
    FeatureRef,
    ModelTraits,
    Obstacles,
    Positions,
    Verdict,
    edit_kinds,
    verdict,
)
from microscope.params.traits import (
    BLOCK_WITHOUT_BIAS,
    EMBEDDING_ELSEWHERE,
    ENCODER,
    NO_BIAS,
    NO_MATRICES,
    NORM_BEHIND,
    NORM_BEHIND_EMBEDDING,
    OTHER_MATRICES,
    SEVERAL_TABLES,
    TEXT_PART,
    TIED,
    TRANSPOSED,
    WRITER_BIASES,
)
from microscope.patching.fitting.least_squares import projections
from microscope.patching.weights import place_of
from microscope.patching.writing import Writing, find_writing


def traits_of(loaded: LoadedModel) -> ModelTraits:
    """What the verdicts need to know of a loaded model."""
    obstacles = Obstacles(patches=ENCODER)
    if loaded.family.causal:
        obstacles = _obstacles(loaded, find_writing(loaded))
    return ModelTraits(
        model_type=str(loaded.config.model_type),
        n_layers=loaded.n_layers,
        tied=is_tied(loaded.model),
        writer_bias=obstacles.adapted_projection == WRITER_BIASES,
        found=obstacles,
    )


def realisations(traits: ModelTraits) -> dict[str, dict[ExportTarget, Verdict]]:
    """What every target can hold of an edit of every kind that acts on all tokens, in the middle of a model."""
    layer = traits.n_layers // 2
    found: dict[str, dict[ExportTarget, Verdict]] = {}
    for kind in edit_kinds().values():
        edit = Edit(
            kind=kind.name,
            site=f"resid_post.{layer}" if kind.sites else "",
            feature=FeatureRef(sae="", index=0) if kind.refers_to == "feature" else None,
            strength=0.5,
            positions=Positions(include_sinks=True),
        )
        plan = EditPlan(edits=(edit,))
        found[kind.name] = {target: verdict(plan, traits, target) for target in EXPORT_TARGETS}
    return found


def _obstacles(loaded: LoadedModel, writing: Writing) -> Obstacles:
    model, holding = loaded.model, {}
    for layer, places in writing.places.items():
        holding[layer] = place_of(places)
    if not all(holding.values()):
        for paths in biases_by_switch(model).values():
            holding |= {i: place_of(writing.places[i], paths) for i, held in holding.items() if held is None}
    blocks = tuple(layer for layer, place in holding.items() if place is not None)
    matrices = [m for m in model.modules() if isinstance(m, Conv1D)]
    return Obstacles(
        writers=_unknown_writers(loaded),
        projection=_against_projection(loaded, writing),
        adapted_projection=_against_adapters(model, writing),
        adapters=TEXT_PART if loaded.part_of is not None else TRANSPOSED if matrices else "",
        fits="" if any(projections(loaded, i) for i in range(loaded.n_layers)) else NO_MATRICES,
        constant=BLOCK_WITHOUT_BIAS if blocks else NO_BIAS,
        constant_blocks=blocks,
        renamed=renamed_by_peft(str(loaded.config.model_type)),
    )


def _unknown_writers(loaded: LoadedModel) -> str:
    try:
        loaded.family.writers(loaded.n_layers)
    except MicroscopeError as error:
        return error.message
    return ""


def _against_projection(loaded: LoadedModel, writing: Writing) -> str:
    """Why what is written can't be projected by projecting weights."""
    if writing.elsewhere:
        return EMBEDDING_ELSEWHERE
    if not writing.mixed:
        return ""
    path = writing.mixed[0]
    if not path:
        return NORM_BEHIND_EMBEDDING
    if "norm" in type(module_at(loaded.model, path)).__name__.lower():
        return NORM_BEHIND
    return f"What {path} adds to the stream is not linear in its last weights: projected weights would not stay projected."


def _against_adapters(model: Any, writing: Writing) -> str:
    """Why adapters cannot project all that is written."""
    owners = [
        (module_at(model, w.path.rpartition(".")[0]), w.path.rpartition(".")[2]) for w in writing.all_weights
    ]
    if any(name == "bias" and isinstance(module, nn.Linear | Conv1D) for module, name in owners):
        return WRITER_BIASES
    if is_tied(model):
        return TIED
    if not all(isinstance(module, nn.Linear | Conv1D | nn.Embedding) for module, _ in owners):
        return OTHER_MATRICES
    return SEVERAL_TABLES if sum(isinstance(module, nn.Embedding) for module, _ in owners) > 1 else ""
