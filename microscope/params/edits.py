"""Edits are data: a plan is a list of frozen records with one fingerprint, never code.

Definitions: for a feature with activation ``f`` and decoder row ``d``, an edit changes the residual
stream ``x`` to ``x + (g(f) − f)·d``; the SAE's error is kept without being computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from microscope.errors import MicroscopeError
from microscope.params.edit_kinds import ANY_KIND, kind_of
from microscope.params.fields import Integer

# A name that :func:`~microscope.params.edit_kinds.edit_kinds` knows; schemas list those. Plans that name another
# can be read and stored, and are refused where they are used: the package that brings it may be missing here.
KindName = Annotated[str, Meta(extra_json_schema=ANY_KIND)]
Unit = Literal["raw", "p999", "resid_norm"]


class FeatureRef(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A feature by the content fingerprint of its SAE (never a name or a row id) and its index."""

    sae: str
    index: Integer


class Positions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where in the sequence an edit acts.

    ``all`` positions, those ``from`` a first one on, a ``set``, or only those that are ``generated``
    (behind the prompt). Special tokens and attention sinks are left alone unless ``include_sinks`` is
    set: their norms are a hundred times larger and features do not mean there what they mean elsewhere.
    """

    mode: Literal["all", "from", "set", "generated"] = "all"
    start: Integer = 0
    indices: tuple[Integer, ...] = ()
    include_sinks: bool = False


class Edit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One change, at one residual site or in what modules write.

    Kinds name what they are made from: a ``feature``, whose SAE reads ``site``; an ``sae``; or an
    ``adapter`` by content fingerprint and optionally some of its ``modules`` (paths in the Hugging Face
    model); none means all. Adapters are never merged into weights.

    Kinds that stand for changed weights act on every token, sinks included, and take no other positions.

    ``unit`` says what ``strength`` counts where it is an amount: raw length (or activation), the
    feature's own 99.9th percentile of activation, or the median norm of the residual stream;
    ``unit_value`` is that quantity in raw units, so that a plan means the same wherever it is applied.
    For the other kinds strength is a ratio.
    """

    kind: KindName
    site: str = ""
    feature: FeatureRef | None = None
    sae: str = ""
    adapter: str = ""
    modules: tuple[str, ...] = ()
    strength: float = 0.0
    unit: Unit = "raw"
    unit_value: float = 1.0
    positions: Positions = Positions()
    enabled: bool = True

    @property
    def is_noop(self) -> bool:
        """True when the edit provably changes nothing, whatever the input."""
        return not self.enabled or kind_of(self).is_noop(self)

    @property
    def sae_needed(self) -> str:
        """Fingerprint of the SAE this edit is computed with; empty without one."""
        return self.feature.sae if self.feature is not None else self.sae

    @property
    def index(self) -> int:
        """Index of the feature; −1 for kinds without one."""
        return self.feature.index if self.feature is not None else -1


class EditPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is changed in one forward pass. Edits at one site all read the unpatched stream.

    Version 2 added edits that name no feature; plans of version 1 mean what they meant.
    """

    edits: tuple[Edit, ...] = ()
    version: Literal[1, 2] = 2

    def active(self) -> tuple[Edit, ...]:
        """The edits that can change something."""
        return tuple(edit for edit in self.edits if not edit.is_noop)

    def saes(self) -> frozenset[str]:
        """Fingerprints of the SAEs the plan names."""
        return frozenset(edit.sae_needed for edit in self.edits if edit.sae_needed)

    def adapters(self) -> frozenset[str]:
        """Fingerprints of the adapters the plan names."""
        return frozenset(edit.adapter for edit in self.edits if edit.adapter)


def plan_fingerprint(edits: EditPlan | Sequence[Edit]) -> str:
    """Content hash of what the plan does: 32 hex digits of SHA-256 over canonical JSON.

    Muted edits and no-ops do not count, and neither does order, because edits at one site are
    order-free and sites are applied from the lowest block up. The empty plan is ``""``, the baseline.
    """
    chosen = edits.active() if isinstance(edits, EditPlan) else tuple(e for e in edits if not e.is_noop)
    if not chosen:
        return ""
    identities = [_canonical.encode({"kind": e.kind, **kind_of(e).identity(e)}) for e in chosen]
    return hashlib.sha256(b"\n".join(sorted(identities))).hexdigest()[:32]


_canonical = msgspec.json.Encoder(order="sorted")
MAX_EDITS = 256


def validate_plan(plan: EditPlan, *, n_layers: int | None) -> None:
    """Check what the types cannot say.

    Args:
        plan: what was asked for.
        n_layers: blocks of the model; None where there is no model yet, whose blocks are then not checked.

    Raises:
        MicroscopeError: ``too_many_edits``, ``incomplete_edit``, ``strength_not_finite``, ``bad_site``,
            ``site_not_editable``, ``layer_out_of_range``, ``bad_feature``, ``bad_positions``,
            ``bad_adapter``, ``two_splices`` or ``unknown_edit_kind``.
    """
    if len(plan.edits) > MAX_EDITS:
        raise MicroscopeError(
            "too_many_edits", f"The plan has {len(plan.edits)} edits; {MAX_EDITS} is the limit."
        )
    replaced: set[str] = set()
    for number, edit in enumerate(plan.edits, 1):
        kind = kind_of(edit)
        for name, value in (("strength", edit.strength), ("unit", edit.unit_value)):
            if not math.isfinite(value):
                raise MicroscopeError(
                    "strength_not_finite",
                    f"Edit {number} ({edit.kind}) has a {name} of {value}, which is not a finite number.",
                    "Give it a finite one.",
                )
        kind.validate(edit, number, n_layers)
        if kind.replaces and edit.enabled:
            if edit.site in replaced:
                raise MicroscopeError(
                    "two_splices",
                    f"Edit {number} is a second {edit.kind} at {edit.site}.",
                    "A site can be replaced by one reconstruction only: mute one of them.",
                )
            replaced.add(edit.site)
