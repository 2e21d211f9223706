"""What an export has to keep to before it may leave."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from microscope.patching.certify.comparing import Effect
from microscope.patching.certify.live import LiveAgreement
from microscope.patching.certify.measure import Collateral, Mean, Parity
from microscope.patching.export.manifest import ExportManifest

EXACT_LOGIT, EXACT_LOGIT_HALF = 1e-4, 5e-2
CLEAN_KL, COLLATERAL_KL, PERPLEXITY = 0.01, 0.02, 0.01
SHARE, HALF, CLEAN = "Share of effect kept", "More than half the patch", "Parity on clean text"
COLLATERAL, PPL = "Collateral", "Perplexity"
# Half of a weak patch has three quarters of its effect: 0.9 of the effect is then 0.6 of what half of it lacks.
SHARE_KEPT, SHARE_OF_HALF = 0.9, 0.6


class Gate(msgspec.Struct, kw_only=True, frozen=True):
    """A limit, from above or, with ``at_least``, from below.

    ``passed`` is None when it could not be measured, which does not open the gate.
    """

    name: str
    value: float | None
    limit: float
    passed: bool | None
    formula: str
    at_least: bool = False
    interval: tuple[float, float] | None = None


def judge(
    manifest: ExportManifest,
    effect: Effect,
    clean: Parity | None,
    trigger: Parity | None,
    live: LiveAgreement | None,
    cost: Collateral,
    null: bool | None,
    spread: float,
) -> tuple[Gate, ...]:
    """The gates of an export of one grade, in order.

    Args:
        null: whether the export, switched off, is the base bit for bit; None when it cannot be.
        spread: standard deviation of the base's logits, in which their differences are counted.
    """
    gates = [
        _share_gate(
            SHARE,
            effect.share,
            SHARE_KEPT,
            "1 − KL(patch ‖ export) / KL(patch ‖ base), where the patch acts",
        ),
        _share_gate(
            HALF,
            effect.share_of_half,
            SHARE_OF_HALF,
            "1 − KL(patch ‖ export) / KL(patch ‖ patch at half strength), where the patch acts",
        ),
    ]
    if manifest.grade == "exact":
        limit = EXACT_LOGIT if manifest.dtype == "float32" else EXACT_LOGIT_HALF
        found = [p.max_abs_logit for p in (clean, trigger) if p is not None]
        worst = max([*found, live.export] if live is not None else found, default=None)
        formula = "max |logit(patch) − logit(export)| ÷ spread of the logits"
        gates.append(_gate("Same logits", _ratio(worst, spread), limit, formula))
    else:
        gates.append(_gate(CLEAN, _mean(clean), CLEAN_KL, "mean KL(patch ‖ export), text as it comes"))
    gates.append(
        _gate(
            "Measured is live",
            None if live is None else _ratio(live.reference, spread),
            EXACT_LOGIT,
            "max |logit(live replay) − logit(reference)| ÷ spread of the logits, next token of some contexts",
        )
    )
    gates.append(_gate(COLLATERAL, cost.kl.value, COLLATERAL_KL, "mean KL(base ‖ export), text as it comes"))
    gates.append(
        _gate(PPL, cost.perplexity_change.value, PERPLEXITY, "perplexity(export)/perplexity(base) − 1")
    )
    if null is not None:
        gates.append(
            _gate("Off is the base", 0.0 if null else 1.0, 0.0, "bit-exact with the export switched off")
        )
    return tuple(gates)


def advice(gates: Sequence[Gate], manifest: ExportManifest, cost_of_patch: Collateral) -> tuple[str, ...]:
    """What did not pass, and what can be done about it, in sentences; none where all gates passed."""
    failed = [gate for gate in gates if gate.passed is False]
    if not failed:
        return ()
    found = [f"Did not pass: {', '.join(gate.name for gate in failed)}."]
    names = {gate.name for gate in failed}
    if names & {SHARE, HALF, CLEAN} and manifest.fit is not None:
        fit = manifest.fit
        found.append(
            "The fit stands in for too little of the patch. Export it again with more steps "
            f"(--fit-steps, {fit.planned_steps or fit.steps} here), a higher rank (--rank, {fit.rank} here), more "
            "text (--fit-tokens) or more blocks (--fit-blocks); or as the runtime bundle (--target bundle), which "
            "is exact."
        )
    own = {COLLATERAL: cost_of_patch.kl.value, PPL: cost_of_patch.perplexity_change.value}
    for gate in failed:
        if gate.name in own and own[gate.name] > gate.limit:
            found.append(
                f"{gate.name}: the patch itself is beyond this limit ({own[gate.name]:.3g}), so every faithful "
                "export of it is. A weaker patch, or one that acts at fewer places, would not be."
            )
    return tuple(found)


def _share_gate(name: str, found: Mean | None, limit: float, formula: str) -> Gate:
    value = None if found is None else found.value
    passed = None if value is None or not np.isfinite(value) else value >= limit
    interval = None if found is None else found.interval
    return Gate(
        name=name, value=value, limit=limit, passed=passed, formula=formula, at_least=True, interval=interval
    )


def _ratio(value: float | None, spread: float) -> float | None:
    """A difference of logits in spreads; None where all logits are alike."""
    return None if value is None or not spread > 0 else value / spread


def _mean(found: Parity | None) -> float | None:
    return None if found is None else found.kl.value


def _gate(name: str, value: float | None, limit: float, formula: str) -> Gate:
    passed = None if value is None or not np.isfinite(value) else value <= limit
    return Gate(name=name, value=value, limit=limit, passed=passed, formula=formula)
