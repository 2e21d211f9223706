"""A patch as a change of weights.

With ``P = I − QQᵀ`` for an orthonormal basis Q of the directions ablated everywhere, a module that writes
to the stream becomes ``W' = P·(W + B·A)``, ``b' = P·b + c``; the embedding's rows become ``P·e``. That is
what the hooks of these edits compute, rearranged: ``P·(Wx + b + BAx) + c``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.models import Family, LoadedModel, module_at
from microscope.params import Edit, EditPlan, ExportTarget, ModelTraits, Site, kind_of, realisation
from microscope.patching.adapters import LowRank
from microscope.patching.apply import Saes, find_sae
from microscope.patching.hooks import deltas_of, stack
from microscope.patching.mechanisms import StreamKind
from microscope.patching.program import Adapters, span_of


@dataclass(frozen=True)
class WeightChange:
    """What becomes of the weights.

    ``deltas`` are added to modules by path, ``constants`` ``[d]`` to the outputs of blocks, and ``span``
    ``[d, k]`` (orthonormal columns) is removed from everything written to the stream.
    """

    deltas: Mapping[str, LowRank] = field(default_factory=dict)
    constants: Mapping[int, Tensor] = field(default_factory=dict)
    span: Tensor | None = None

    def plus(self, deltas: Mapping[str, LowRank]) -> WeightChange:
        """With more deltas; on a module that has one already they are stacked."""
        merged = dict(self.deltas)
        for path, delta in deltas.items():
            merged[path] = stack([merged[path], delta]) if path in merged else delta
        return WeightChange(merged, self.constants, self.span)


def exact_part(
    plan: EditPlan, traits: ModelTraits, target: ExportTarget, saes: Saes, adapters: Adapters
) -> tuple[WeightChange, EditPlan]:
    """The edits a target holds as weights, and the plan of those that have to be fitted."""
    held: list[Edit] = []
    rest: list[Edit] = []
    constants: dict[int, Tensor] = {}
    for edit in plan.active():
        if realisation(edit, traits, target) == "fitted":
            rest.append(edit)
            continue
        held.append(edit)
        kind = kind_of(edit)
        if isinstance(kind, StreamKind):
            layer = Site.parse(edit.site).layer
            constant = kind.constant(edit, find_sae(saes, edit))
            constants[layer] = constants.get(layer, torch.zeros(())) + constant
    kept = EditPlan(edits=tuple(held))
    change = WeightChange(deltas_of(kept, adapters), constants, span_of(kept, saes))
    return change, EditPlan(edits=tuple(rest))


def weight_of(module: Any) -> Tensor:
    """A module's weight as ``[out, in]``; GPT-2 stores the transpose."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def as_low_rank(change: WeightChange, loaded: LoadedModel) -> dict[str, LowRank]:
    """The whole change of linear modules as low-rank deltas, for adapters. Constants are left out.

    Projecting ``W + BA`` is one more delta ``−Q·(Qᵀ(W + BA))`` beside ``BA``.
    """
    out = dict(change.deltas)
    if change.span is None:
        return out
    q = change.span
    for path in loaded.family.projections(loaded.n_layers):
        weight = weight_of(module_at(loaded.model, path)).float()
        delta = out.get(path)
        if delta is not None:
            weight = weight + delta.b @ delta.a
        projection = LowRank(q.T @ weight, -q)
        out[path] = stack([delta, projection]) if delta is not None else projection
    return out


@torch.no_grad()
def change_weights(model: Any, family: Family, change: WeightChange) -> bool:
    """Write a change into a model's own weights; returns whether the embedding had to be untied.

    Args:
        model: a Hugging Face model nobody else uses.
        family: its family.
        change: what to do. Constants need an MLP bias; llama gets one.
    """
    # A change of the head must not reach the embedding, nor one of the embedding the head.
    untied = (change.span is not None or family.head in change.deltas) and _untie(model)
    for path, delta in change.deltas.items():
        _add(module_at(model, path), delta.b @ delta.a)
    if change.span is not None:
        _project(model, family, change.span)
    if change.constants and model.config.model_type == "llama" and not model.config.mlp_bias:
        _give_mlp_biases(model)
    for layer, constant in change.constants.items():
        projection = family.parts_of(layer).mlp_projection
        bias = module_at(model, f"{family.block_path(layer)}.{projection}").bias
        assert isinstance(bias, Tensor), "checked by the verdict"
        bias.add_(constant.to(bias))
    return untied


def _add(module: Any, delta: Tensor) -> None:
    delta = delta.T if isinstance(module, Conv1D) else delta
    module.weight.copy_((module.weight.float() + delta.to(module.weight.device)).to(module.weight.dtype))


def _untie(model: Any) -> bool:
    """Give the head a weight of its own where it is the embedding's; returns whether it was."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight:
        return False
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
    return True


def _project(model: Any, family: Family, span: Tensor) -> None:
    for path in family.projections(model.config.num_hidden_layers):
        module: Any = module_at(model, path)
        q = span.to(module.weight.device)
        _add(module, -q @ (q.T @ weight_of(module).float()))
        bias = getattr(module, "bias", None)
        if isinstance(bias, Tensor):
            bias.copy_((bias.float() - q @ (q.T @ bias.float())).to(bias.dtype))
    positions = getattr(model.base_model, "wpe", None)
    for table in (model.get_input_embeddings(), positions):
        if table is not None:
            q = span.to(table.weight.device)
            rows = table.weight.float()
            table.weight.copy_((rows - (rows @ q) @ q.T).to(table.weight.dtype))


def _give_mlp_biases(model: Any) -> None:
    """Biases of zero on every MLP matrix, which is what ``mlp_bias`` means in a llama's configuration."""
    model.config.mlp_bias = True
    for layer in model.model.layers:
        for name in ("gate_proj", "up_proj", "down_proj"):
            module = getattr(layer.mlp, name)
            zeros = module.weight.new_zeros(module.weight.shape[0])
            module.bias = nn.Parameter(zeros, requires_grad=False)
