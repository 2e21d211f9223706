"""Edits are data: a plan is a list of frozen records with one fingerprint, never code.

Definitions: for a feature with activation ``f`` and decoder row ``d``, an edit changes the residual
stream ``x`` to ``x + (g(f) − f)·d``; the SAE's error is kept without being computed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from microscope.errors import MicroscopeError
from microscope.params.fields import Integer
from microscope.params.sites import Site

EditKind = Literal[
    "ablate",
    "scale",
    "clamp_firing",
    "clamp_all",
    "add",
    "project",
    "ablate_everywhere",
    "splice",
    "lora",
]
EDIT_KINDS: tuple[EditKind, ...] = get_args(EditKind)

# Kinds that read a feature's activation; those that count their strength in a unit; those that act on
# what modules write, as changed weights would, and therefore on every token.
GATED_KINDS = frozenset({"ablate", "scale", "clamp_firing", "clamp_all"})
UNIT_KINDS = frozenset({"add", "clamp_firing", "clamp_all"})
WEIGHT_KINDS = frozenset({"ablate_everywhere", "lora"})
# Strengths that change nothing, bit for bit.
NEUTRAL_STRENGTH: dict[str, float] = {"scale": 1.0, "project": 1.0, "add": 0.0, "lora": 0.0}

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

    =================  ==============================  ===============================================
    kind               effect                          strength
    =================  ==============================  ===============================================
    ablate             x − f·d                         unused
    scale              x + (α−1)·f·d                   α; 1 is a bit-exact no-op
    clamp_firing       x + (c−f)·d where f > 0         c = strength × unit_value
    clamp_all          x + (c−f)·d                     c = strength × unit_value
    add                x + c·d̂                         c = strength × unit_value; 0 is a no-op
    project            x + (λ−1)(d̂·x)·d̂                λ; 1 is a bit-exact no-op, 0 removes d̂
    splice             SAE(x); sinks pass through      unused
    ablate_everywhere  y − (d̂·y)·d̂ for the embedding   unused
                       and all y that blocks add
    lora               W·x + s·B(A·x) in modules       s; 0 is a bit-exact no-op
    =================  ==============================  ===============================================

    All kinds but ``splice`` and ``lora`` name a ``feature``; its SAE reads ``site``. ``splice`` names an
    ``sae``. ``lora`` names an ``adapter`` by content fingerprint and optionally some of its ``modules``
    (paths in the Hugging Face model); none means all. Adapters are never merged into weights.

    The last two kinds stand for changed weights, so they act on every token, sinks included, and take
    no other positions. Several ``ablate_everywhere`` remove the span of their directions.

    ``unit`` says what ``strength`` counts for ``add`` and the clamps: raw length (or activation), the
    feature's own 99.9th percentile of activation, or the median norm of the residual stream;
    ``unit_value`` is that quantity in raw units, so that a plan means the same wherever it is applied.
    For the other kinds strength is a ratio.
    """

    kind: EditKind
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
        return not self.enabled or self.strength == NEUTRAL_STRENGTH.get(self.kind)

    @property
    def sae_needed(self) -> str:
        """Fingerprint of the SAE this edit is computed with; empty for ``lora``."""
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
    encoder = msgspec.json.Encoder(order="sorted")
    return hashlib.sha256(b"\n".join(sorted(encoder.encode(_identity(e)) for e in chosen))).hexdigest()[:32]


def _identity(edit: Edit) -> dict[str, Any]:
    """The fields that decide what an edit does."""
    if edit.kind == "lora":
        return {
            "kind": edit.kind,
            "adapter": edit.adapter,
            "modules": sorted(set(edit.modules)),
            "strength": edit.strength,
        }
    if edit.kind == "ablate_everywhere":
        return {"kind": edit.kind, "site": edit.site, "feature": edit.feature}
    if edit.kind == "splice":
        return {"kind": edit.kind, "site": edit.site, "sae": edit.sae, "positions": edit.positions}
    return {
        "kind": edit.kind,
        "site": edit.site,
        "feature": edit.feature,
        "strength": edit.strength,
        "unit": edit.unit,
        "unit_value": edit.unit_value,
        "positions": edit.positions,
        "enabled": edit.enabled,
    }


MAX_EDITS = 256
MAX_MODULES = 4096
_DIRECTION_SITES = ("resid_post", "resid_mid", "attn_out", "mlp_out")


def validate_plan(plan: EditPlan, *, n_layers: int | None) -> None:
    """Check what the types cannot say.

    Args:
        plan: what was asked for.
        n_layers: blocks of the model; None where there is no model yet, whose blocks are then not checked.

    Raises:
        MicroscopeError: ``too_many_edits``, ``incomplete_edit``, ``strength_not_finite``, ``bad_site``,
            ``site_not_editable``, ``layer_out_of_range``, ``bad_feature``, ``bad_positions``,
            ``bad_adapter`` or ``two_splices``.
    """
    if len(plan.edits) > MAX_EDITS:
        raise MicroscopeError(
            "too_many_edits", f"The plan has {len(plan.edits)} edits; {MAX_EDITS} is the limit."
        )
    spliced: set[str] = set()
    for number, edit in enumerate(plan.edits, 1):
        for name, value in (("strength", edit.strength), ("unit", edit.unit_value)):
            if not math.isfinite(value):
                raise MicroscopeError(
                    "strength_not_finite",
                    f"Edit {number} ({edit.kind}) has a {name} of {value}, which is not a finite number.",
                    "Give it a finite one.",
                )
        _check_reference(edit, number)
        _check_positions(edit, number)
        if edit.kind != "lora":
            _check_site(edit, number, n_layers)
        if edit.kind == "splice" and edit.enabled:
            if edit.site in spliced:
                raise MicroscopeError(
                    "two_splices",
                    f"Edit {number} is a second splice at {edit.site}.",
                    "A site can be replaced by one reconstruction only: mute one of them.",
                )
            spliced.add(edit.site)


def _check_reference(edit: Edit, number: int) -> None:
    """Each kind names what it is made from, and nothing else."""
    wanted = {"lora": "adapter", "splice": "sae"}.get(edit.kind, "feature")
    for name in ("feature", "sae", "adapter"):
        if (name == wanted) != bool(getattr(edit, name)):
            verb = "needs" if name == wanted else "does not take"
            article = {"sae": "an SAE", "adapter": "an adapter"}.get(name, "a feature")
            raise MicroscopeError("incomplete_edit", f"Edit {number} ({edit.kind}) {verb} {article}.")
    if edit.feature is not None and edit.feature.index < 0:
        raise MicroscopeError("bad_feature", f"Edit {number} names feature {edit.feature.index}.")
    if edit.modules and edit.kind != "lora":
        raise MicroscopeError("incomplete_edit", f"Edit {number} ({edit.kind}) does not take modules.")
    if len(edit.modules) > MAX_MODULES:
        raise MicroscopeError("bad_adapter", f"Edit {number} names {len(edit.modules)} modules.")


def _check_site(edit: Edit, number: int, n_layers: int | None) -> None:
    site = Site.parse(edit.site)
    if edit.kind == "ablate_everywhere":
        if site.kind not in _DIRECTION_SITES:
            raise MicroscopeError(
                "site_not_editable",
                f"Edit {number}'s feature lives at {site}, which is not in the space of the residual stream.",
            )
    elif site.kind != "resid_post":
        raise MicroscopeError(
            "site_not_editable",
            f"Edit {number} is at {site}; live edits act on the residual stream after a block.",
            f"Use resid_post.{site.layer}.",
        )
    if n_layers is not None and site.layer >= n_layers:
        raise MicroscopeError(
            "layer_out_of_range",
            f"Edit {number} is at block {site.layer}, but the model's last block is {n_layers - 1}.",
        )


def _check_positions(edit: Edit, number: int) -> None:
    where = edit.positions
    if where.start < 0 or any(i < 0 for i in where.indices):
        raise MicroscopeError("bad_positions", f"Edit {number} names a negative position.")
    if edit.kind in WEIGHT_KINDS and where.mode != "all":
        raise MicroscopeError(
            "bad_positions",
            f"Edit {number} ({edit.kind}) stands for changed weights, which act on every token.",
            "Set its positions to all.",
        )
