"""What an export has to keep to before it may leave."""

from __future__ import annotations

import msgspec
import numpy as np

from microscope.patching.certify.comparing import Effect
from microscope.patching.certify.live import LiveAgreement
from microscope.patching.certify.measure import Collateral, Mean, Parity
from microscope.patching.export.manifest import ExportManifest

EXACT_LOGIT, EXACT_LOGIT_HALF = 1e-4, 5e-2
CLEAN_KL, COLLATERAL_KL, PERPLEXITY = 0.01, 0.02, 0.01
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
            "Share of effect kept",
            effect.share,
            SHARE_KEPT,
            "1 − KL(patch ‖ export) / KL(patch ‖ base), where the patch acts",
        ),
        _share_gate(
            "More than half the patch",
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
        gates.append(
            _gate("Parity on clean text", _mean(clean), CLEAN_KL, "mean KL(patch ‖ export), text as it comes")
        )
    gates.append(
        _gate(
            "Measured is live",
            None if live is None else _ratio(live.reference, spread),
            EXACT_LOGIT,
            "max |logit(live replay) − logit(reference)| ÷ spread of the logits, next token of some contexts",
        )
    )
    gates.append(
        _gate("Collateral", cost.kl.value, COLLATERAL_KL, "mean KL(base ‖ export), text as it comes")
    )
    gates.append(
        _gate(
            "Perplexity", cost.perplexity_change.value, PERPLEXITY, "perplexity(export)/perplexity(base) − 1"
        )
    )
    if null is not None:
        gates.append(
            _gate("Off is the base", 0.0 if null else 1.0, 0.0, "bit-exact with the export switched off")
        )
    return tuple(gates)


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
