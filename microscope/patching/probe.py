"""One prompt with and without a patch, on the live path."""

from __future__ import annotations

from typing import Any

from microscope.errors import MicroscopeError
from microscope.live import ResidentModel
from microscope.models import load_model
from microscope.params import PatchApplyParams
from microscope.patching.plan_file import read_patch, refuse_missing
from microscope.progress import SILENT, Progress


def apply_patch(params: PatchApplyParams, progress: Progress = SILENT) -> dict[str, Any]:
    """Next-token probabilities of a prompt, base and patched, and where each edit fired.

    Raises:
        MicroscopeError: ``no_model``, ``sae_missing``, ``adapter_missing``, or what reading, loading and applying raise.
    """
    patch = read_patch(params.patch)
    reference = params.model or patch.model
    if not reference:
        raise MicroscopeError("no_model", "The patch does not say which model it is for.", "Add --model.")
    progress.log(f"Loading {reference}")
    resident = ResidentModel(
        load_model(reference, revision=params.revision, dtype=params.dtype, device=params.device)
    )
    hints = (path for fingerprint, path in patch.saes.items() if fingerprint in patch.plan.saes())
    for path in params.sae_path or hints:
        resident.attach(path)
    kept = (path for fingerprint, path in patch.adapters.items() if fingerprint in patch.plan.adapters())
    for path in params.adapter_path or kept:
        resident.attach_adapter(path)
    refuse_missing(patch.plan, resident.attached.saes, resident.attached.adapters)
    resident.open("prompt", params.prompt, top=params.top)
    applied = resident.apply("prompt", patch.plan, top=params.top)
    comparison = applied.comparison
    return {
        "fingerprint": applied.fingerprint,
        "kl": comparison.kl,
        "shifts": [
            {
                "token": shift.token,
                "text": resident.token_text(shift.token),
                "base": shift.base,
                "patched": shift.patched,
            }
            for shift in comparison.shifts
        ],
        "receipts": [
            {
                "kind": effect.edit.kind,
                "site": effect.edit.site,
                "positions": list(effect.positions),
                "max_delta": effect.max_delta,
            }
            for effect in applied.outcome.effects
        ],
    }
