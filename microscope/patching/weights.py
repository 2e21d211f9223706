"""A patch as a change of weights.

With ``P = I − QQᵀ`` for an orthonormal basis Q of the directions ablated everywhere, a module that writes
to the stream becomes ``W' = P·(W + B·A)``, ``b' = P·b + c``; the embedding's rows become ``P·e``. That is
what the hooks of these edits compute, rearranged: ``P·(Wx + b + BAx) + c``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from microscope.errors import MicroscopeError
from microscope.models import LoadedModel, module_at
from microscope.models.obstacles import biases_by_switch, is_tied
from microscope.params import Edit, EditPlan, ExportTarget, ModelTraits, Site, kind_of, realisation
from microscope.patching.adapters import LowRank
from microscope.patching.apply import Saes, find_sae
from microscope.patching.hooks import add_constants, add_deltas, deltas_of, project_writers, stack
from microscope.patching.mechanisms import StreamKind
from microscope.patching.program import Adapters, span_of
from microscope.patching.writing import Place, Writing, find_writing


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


def held_hooks(loaded: LoadedModel, change: WeightChange) -> list[Any]:
    """Hooks that do what a change of weights does."""
    handles = add_deltas(loaded.model, change.deltas)
    if change.span is not None:
        handles += project_writers(loaded, change.span)
    return handles + add_constants(loaded.model, loaded.family, change.constants)


def weight_of(module: Any) -> Tensor:
    """A module's weight as ``[out, in]``; GPT-2 stores the transpose."""
    weight: Tensor = module.weight.detach()
    return weight.T if isinstance(module, Conv1D) else weight


def as_low_rank(change: WeightChange, loaded: LoadedModel) -> tuple[dict[str, LowRank], dict[str, LowRank]]:
    """The whole change as low-rank deltas of linear modules and of the embedding, for adapters.

    Projecting ``W + BA`` is one more delta ``−Q·(Qᵀ(W + BA))`` beside ``BA``. Constants are left out.

    Raises:
        MicroscopeError: ``not_possible`` where something else writes to the stream, too.
    """
    out: dict[str, LowRank] = dict(change.deltas)
    embeddings: dict[str, LowRank] = {}
    if change.span is None:
        return out, embeddings
    q = change.span
    for written in find_writing(loaded).all_weights:
        path, _, name = written.path.rpartition(".")
        module = module_at(loaded.model, path)
        if name == "weight" and isinstance(module, nn.Embedding):
            embeddings[path] = LowRank((module.weight.float() @ q).T, -q)
            continue
        if name != "weight" or not isinstance(module, nn.Linear | Conv1D):
            raise MicroscopeError(
                "not_possible",
                f"{written.path} writes to the stream, and no adapter can project it.",
                "Use the merged checkpoint.",
            )
        weight, delta = weight_of(module).float(), out.get(path)
        if delta is not None:
            weight = weight + delta.b @ delta.a
        projection = LowRank(q.T @ weight, -q)
        out[path] = stack([delta, projection]) if delta is not None else projection
    return out, embeddings


@torch.no_grad()
def change_weights(own: LoadedModel, change: WeightChange) -> bool:
    """Write a change into a model's own weights; returns whether the embedding had to be untied.

    Args:
        own: a model nobody else uses.
        change: what to do.

    Raises:
        MicroscopeError: ``not_possible`` for a constant where no bias can hold it.
    """
    model: Any = own.model
    # A change of the head must not reach the embedding, nor one of the embedding the head.
    untied = (change.span is not None or own.family.head in change.deltas) and _untie(model)
    writing = find_writing(own) if change.span is not None or change.constants else None
    for path, delta in change.deltas.items():
        _add(module_at(model, path), delta.b @ delta.a)
    if writing is not None and change.span is not None:
        _project(model, writing, change.span)
    if writing is not None and change.constants:
        _add_constants(model, writing, change.constants)
    return untied


def _add(module: Any, delta: Tensor) -> None:
    delta = delta.T if isinstance(module, Conv1D) else delta
    module.weight.copy_((module.weight.float() + delta.to(module.weight.device)).to(module.weight.dtype))


def _untie(model: Any) -> bool:
    """Give the head a weight of its own where it is the embedding's; returns whether it was."""
    if not is_tied(model):
        return False
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    for config in (model.config, getattr(model.config, "text_config", None)):
        if config is not None:
            config.tie_word_embeddings = False
    return True


def _project(model: Any, writing: Writing, span: Tensor) -> None:
    """Take a span out of every weight that writes to the stream, along the axis of the stream."""
    for written in writing.all_weights:
        weight = model.get_parameter(written.path)
        q = span.to(weight.device)
        rows = weight.float().movedim(written.axis, -1)
        kept = rows - (rows @ q) @ q.T
        weight.copy_(kept.movedim(-1, written.axis).to(weight.dtype))


def _add_constants(model: Any, writing: Writing, constants: Mapping[int, Tensor]) -> None:
    places = {layer: place_of(writing.places[layer]) for layer in constants}
    for switch, paths in biases_by_switch(model).items():
        if all(places.values()):
            break
        switched = {layer: place_of(writing.places[layer], paths) for layer in constants}
        if all(switched.values()):
            places = switched
            _give_biases(model, switch, paths)
    for layer, constant in constants.items():
        place = places[layer]
        if place is None:
            raise MicroscopeError(
                "not_possible",
                f"No bias of block {layer} holds a constant.",
                "Use the control vector or the bundle.",
            )
        bias = module_at(model, place.path).bias
        assert isinstance(bias, Tensor), "found to have one"
        bias.add_((constant / place.scale).to(bias))


def _give_biases(model: Any, switch: str, paths: Collection[str]) -> None:
    """Biases of zero on all modules that a setting of the configuration gives biases."""
    setattr(model.config, switch, not getattr(model.config, switch))
    for path in paths:
        module: Any = module_at(model, path)
        out = module.weight.shape[1 if isinstance(module, Conv1D) else 0]
        module.bias = nn.Parameter(module.weight.new_zeros(out), requires_grad=False)


def place_of(places: Sequence[Place], switched: Collection[str] = ()) -> Place | None:
    """The module whose bias holds a constant: the last that has one, or is given one by a switch."""
    return next((p for p in reversed(places) if p.has_bias or p.path in switched), None)
