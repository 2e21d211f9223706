"""A plan bound to the SAEs and adapters it names: what one forward pass is told to change, layer by layer.

Each layer carries two content keys, of what changes inside the block and of what changes behind it. Two
programs with equal keys up to a layer compute the same stream there: that is all that caches rely on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from microscope.errors import MicroscopeError
from microscope.models import Family
from microscope.models.runner import BlockPatch, Delta
from microscope.params import Edit, EditPlan, kind_of, plan_fingerprint
from microscope.patching.adapters import LowRank, LowRankAdapter
from microscope.patching.apply import Saes, SiteEdits, check_references, edits_by_layer, find_sae
from microscope.patching.mechanisms import ModulesKind, WritersKind

Adapters = Mapping[str, LowRankAdapter]


@dataclass(frozen=True)
class Program:
    """What to change.

    ``edits`` are the plan's active ones; numbers elsewhere index it. ``span`` ``[d, k]`` is removed from
    the embedding and from all that blocks add. ``block_keys`` and ``site_keys`` are fingerprints per layer.
    ``head`` changes the unembedding, behind all layers. ``writers`` counts the modules of each layer that add to
    the stream, where a span goes.
    """

    edits: tuple[Edit, ...]
    sites: Mapping[int, SiteEdits]
    deltas: Mapping[int, Mapping[str, tuple[Delta, ...]]]
    span: Tensor | None
    directions: Mapping[int, Tensor]
    embedding_key: str
    block_keys: tuple[str, ...]
    site_keys: tuple[str, ...]
    head: tuple[Delta, ...] = ()
    writers: tuple[int, ...] = ()

    def block_patch(self, layer: int) -> BlockPatch | None:
        """The argument for one call of a block; None when its weights are as they are."""
        deltas = self.deltas.get(layer, {})
        if not deltas and self.span is None:
            return None
        return BlockPatch(deltas, self.span, self.directions, self.writers[layer] if self.writers else 2)


def bind(
    plan: EditPlan,
    *,
    family: Family,
    n_layers: int,
    saes: Saes,
    adapters: Adapters,
    generating: bool = False,
) -> Program:
    """Resolve what a plan names.

    Args:
        plan: a plan that :func:`validate_plan` accepts.
        family: of the model.
        n_layers: of the model.
        saes: autoencoders by fingerprint.
        adapters: low-rank adapters by fingerprint.
        generating: False leaves out edits that act only behind the prompt.

    Raises:
        MicroscopeError: what :func:`find_sae` raises, ``adapter_not_attached``, ``no_such_module``,
            ``module_not_live`` or ``writers_unknown``.
    """
    edits = tuple(e for e in plan.active() if generating or e.positions.mode != "generated")
    kept = EditPlan(edits=edits)
    check_references(kept, saes)
    directions = {i: d for i, e in enumerate(edits) if (d := direction_of(e, saes)) is not None}
    everywhere = [edits[i] for i in directions]
    if everywhere:
        family.writers(n_layers)  # refuses where it is not known what writes
    everywhere_key = plan_fingerprint(everywhere)
    sites = edits_by_layer(kept)
    deltas, head = _deltas(edits, adapters, family, n_layers)
    return Program(
        edits,
        sites,
        deltas,
        span_of(kept, saes),
        directions,
        everywhere_key,
        tuple(
            plan_fingerprint([*everywhere, *_unique(edits, deltas[layer])])
            if layer in deltas
            else everywhere_key
            for layer in range(n_layers)
        ),
        tuple(plan_fingerprint(sites[layer].edits) if layer in sites else "" for layer in range(n_layers)),
        head,
        tuple(len(family.parts_of(layer).writers) for layer in range(n_layers)) if everywhere else (),
    )


def _unique(edits: tuple[Edit, ...], deltas: Mapping[str, tuple[Delta, ...]]) -> list[Edit]:
    numbers = sorted({delta.edit for parts in deltas.values() for delta in parts})
    return [edits[number] for number in numbers]


def direction_of(edit: Edit, saes: Saes) -> Tensor | None:
    """The unit direction ``[d]`` that an edit removes from all that is written; None when it acts otherwise."""
    kind = kind_of(edit)
    return kind.direction(edit, find_sae(saes, edit)) if isinstance(kind, WritersKind) else None


def span_of(plan: EditPlan, saes: Saes) -> Tensor | None:
    """Orthonormal columns ``[d, k]`` spanning the directions ablated everywhere; None when there are none."""
    rows = [row for edit in plan.active() if (row := direction_of(edit, saes)) is not None]
    if not rows:
        return None
    # By singular vectors, so that repeated or dependent directions count once.
    u, s, _ = torch.linalg.svd(torch.stack(rows, dim=1).double(), full_matrices=False)
    return u[:, s > 1e-6 * s[0]].float()


def factors_of(edit: Edit, adapters: Adapters) -> dict[str, LowRank]:
    """The low-rank changes of modules that an edit makes at strength 1; none when it acts otherwise.

    Raises:
        MicroscopeError: ``adapter_not_attached`` or ``no_such_module``.
    """
    kind = kind_of(edit)
    return kind.factors(edit, adapters) if isinstance(kind, ModulesKind) else {}


def _deltas(
    edits: tuple[Edit, ...], adapters: Adapters, family: Family, n_layers: int
) -> tuple[dict[int, dict[str, tuple[Delta, ...]]], tuple[Delta, ...]]:
    """The changes inside blocks, by layer and module, and those of the head."""
    found: dict[int, dict[str, tuple[Delta, ...]]] = {}
    head: list[Delta] = []
    for number, edit in enumerate(edits):
        for path, (a, b) in factors_of(edit, adapters).items():
            delta = Delta(number, a, b, edit.strength)
            if path == family.head:
                head.append(delta)
                continue
            layer, module = block_of(path, family, n_layers)
            inside = found.setdefault(layer, {})
            inside[module] = (*inside.get(module, ()), delta)
    return found, tuple(head)


def block_of(path: str, family: Family, n_layers: int) -> tuple[int, str]:
    """The block a module is in and its path there.

    Raises:
        MicroscopeError: ``module_not_live``.
    """
    match = re.fullmatch(re.escape(family.blocks) + r"\.(\d+)\.(.+)", path)
    if match is None or int(match[1]) >= n_layers:
        raise MicroscopeError(
            "module_not_live",
            f"The adapter changes '{path}', which is in no block; only blocks and the head are patched.",
            "Leave that module out.",
        )
    return int(match[1]), match[2]
