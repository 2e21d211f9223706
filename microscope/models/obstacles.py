"""What a model's structure says of exports, from its modules alone: weights need no storage.

Exports themselves look at the weights, which know more (:mod:`microscope.patching.writing`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, conversion_mapping
from transformers.pytorch_utils import Conv1D

from microscope.models.families import Family
from microscope.params import Obstacles
from microscope.params.traits import (
    BLOCK_WITHOUT_BIAS,
    ENCODER,
    NO_BIAS,
    NO_MATRICES,
    NORM_BEHIND,
    OTHER_MATRICES,
    SEVERAL_TABLES,
    TIED,
    TRANSPOSED,
    WRITER_BIASES,
)

MATRICES = (nn.Linear, Conv1D)
# Names of experts' modules, as PEFT maps them to parameters, by the family whose layout a model has.
_EXPERTS_ONCE = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}


def obstacles_of(model: Any, family: Family, n_layers: int) -> Obstacles:
    """What stands in the way of exports, as far as the module tree tells.

    Args:
        model: a model, or its skeleton.
        family: its family. Of one that is found by structure, the parts of blocks are known only once it ran.
        n_layers: how many blocks it has.
    """
    if not family.causal:
        return Obstacles(patches=ENCODER)
    blocks = [(family.block_path(i), family.parts_of(i)) for i in range(n_layers)]
    if not any(parts.writers for _, parts in blocks):
        return Obstacles(proven=False)
    behind = experts = False
    matrices: list[nn.Module] = []
    for block, parts in blocks:
        for writer, projection in (
            (parts.attention, parts.attention_projection),
            (parts.mlp, parts.mlp_projection),
        ):
            if projection is None:
                experts |= writer is not None
                continue
            matrices.append(model.get_submodule(f"{block}.{projection}"))
            behind |= writer is None or not f"{projection}.".startswith(f"{writer}.")
    linear = [m for m in matrices if isinstance(m, MATRICES)]
    switched: set[str] = set() if behind else set().union(*biases_by_switch(model).values())
    holding = tuple(
        i
        for i, (block, parts) in enumerate(blocks)
        if not behind
        and parts.mlp_projection
        and _can_have_bias(model, f"{block}.{parts.mlp_projection}", switched)
    )
    return Obstacles(
        projection=NORM_BEHIND if behind else "",
        adapted_projection=_against_adapters(
            model, family, linear, experts=experts or len(linear) < len(matrices)
        ),
        adapters=TRANSPOSED if any(isinstance(m, Conv1D) for m in linear) else "",
        fits="" if linear else NO_MATRICES,
        constant=BLOCK_WITHOUT_BIAS if holding else NO_BIAS,
        constant_blocks=holding,
        renamed=renamed_by_peft(str(model.config.model_type)),
        proven=not family.found,
    )


def _can_have_bias(model: Any, path: str, switched: set[str]) -> bool:
    return getattr(model.get_submodule(path), "bias", None) is not None or path in switched


def _against_adapters(model: Any, family: Family, linear: Sequence[nn.Module], *, experts: bool) -> str:
    """Why adapters cannot project all that is written."""
    width = model.get_input_embeddings().weight.shape[-1]
    outside = [m for name, m in model.named_modules() if not name.startswith(f"{family.blocks}.")]
    tables = [m for m in outside if isinstance(m, nn.Embedding) and m.weight.shape[-1] == width]
    if any(getattr(m, "bias", None) is not None for m in linear):
        return WRITER_BIASES
    if is_tied(model):
        return TIED
    if experts:
        return OTHER_MATRICES
    return SEVERAL_TABLES if len(tables) > 1 else ""


def is_tied(model: Any) -> bool:
    """Whether the embedding is also the head."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def renamed_by_peft(model_type: str) -> tuple[str, ...]:
    """Last parts of modules' names that PEFT takes for those of experts (its ``transformers_weight_conversion``)."""
    families = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return _EXPERTS_ONCE.get(families.get(model_type, ""), ())


def biases_by_switch(model: PreTrainedModel) -> dict[str, set[str]]:
    """Settings of the configuration that give matrices biases they do not have, and those modules' paths.

    Tried on skeletons: with the setting the other way round, all weights must be as they are but for additional
    biases of linear modules.
    """
    have = {name: p.shape for name, p in model.named_parameters()}
    found = {}
    for name, value in vars(model.config).items():
        if "bias" not in name or not isinstance(value, bool):
            continue
        config = copy.deepcopy(model.config)
        setattr(config, name, not value)
        # A class need not take a setting the other way round.
        with contextlib.suppress(Exception), torch.device("meta"):
            other = type(model)(config)
            others = {path: p.shape for path, p in other.named_parameters()}
            added = others.keys() - have.keys()
            paths = {path.removesuffix(".bias") for path in added}
            same = all(others.get(path) == shape for path, shape in have.items())
            if added and same and all(_is_matrix(model, path) for path in paths):
                found[name] = paths
    return found


def _is_matrix(model: Any, path: str) -> bool:
    try:
        return isinstance(model.get_submodule(path), MATRICES)
    except AttributeError:
        return False
