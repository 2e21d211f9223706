"""Checking a plan against the project it is used in."""

from __future__ import annotations

import msgspec

from apps.core.errors import Refused
from apps.patches.models import Adapter
from apps.registry.models import LanguageModel, ResultState
from apps.registry.readiness import model_not_ready
from apps.saes.models import Sae
from microscope.params import Edit, EditPlan, Site, validate_plan


def sae_map(model: LanguageModel) -> dict[str, Sae]:
    """The SAEs edits of this model may name, by fingerprint."""
    rows = Sae.objects.select_related("artifact").filter(
        project_id=model.project_id, model_id=model.pk, state=ResultState.READY
    )
    return {sae.fingerprint: sae for sae in rows}


def adapter_map(model: LanguageModel) -> dict[str, Adapter]:
    """The adapters edits of this model may name, by fingerprint."""
    rows = Adapter.objects.select_related("artifact").filter(
        project_id=model.project_id, model_id=model.pk, state=ResultState.READY
    )
    return {adapter.fingerprint: adapter for adapter in rows}


def with_modules(plan: EditPlan, model: LanguageModel) -> EditPlan:
    """The plan with every whole adapter spelt out by its modules, which decide where it can be exported."""
    known = adapter_map(model) if plan.adapters() else {}

    def spelt(edit: Edit) -> Edit:
        if edit.modules or edit.adapter not in known:
            return edit
        modules = known[edit.adapter].summary.get("modules", ())
        return msgspec.structs.replace(edit, modules=tuple(modules))

    return msgspec.structs.replace(plan, edits=tuple(spelt(edit) for edit in plan.edits))


def check_plan(plan: EditPlan, model: LanguageModel) -> None:
    """Whether the plan can be applied to the model with the SAEs of its project.

    Raises:
        Refused: ``model_not_ready``, ``unknown_sae``, ``unknown_adapter``, ``feature_out_of_range``,
            ``wrong_site``.
        MicroscopeError: what :func:`microscope.params.validate_plan` raises.
    """
    if model.n_layers is None:
        raise model_not_ready(model)
    validate_plan(plan, n_layers=model.n_layers)
    if plan.adapters():
        _check_adapters(plan, model)
    if not plan.saes():
        return
    known = sae_map(model)
    for number, edit in enumerate(plan.edits, 1):
        if not edit.sae_needed:
            continue
        sae = known.get(edit.sae_needed)
        if sae is None:
            raise Refused(
                "unknown_sae",
                f"Edit {number} names an SAE this project does not have for this model.",
                "Use the fingerprint of one of its SAEs.",
                attr="plan",
            )
        if edit.index >= sae.width:
            raise Refused(
                "feature_out_of_range",
                f"Edit {number} names feature {edit.index}; {sae.name} has {sae.width}.",
                attr="plan",
            )
        site = Site.parse(edit.site)
        if site.layer != sae.layer or site.kind != sae.site:
            raise Refused(
                "wrong_site",
                f"Edit {number} is at {site}; {sae.name} was trained at {sae.site}.{sae.layer}.",
                f"Use {sae.site}.{sae.layer}.",
                attr="plan",
            )


def _check_adapters(plan: EditPlan, model: LanguageModel) -> None:
    known = adapter_map(model)
    for number, edit in enumerate(plan.edits, 1):
        if edit.adapter and edit.adapter not in known:
            raise Refused(
                "unknown_adapter",
                f"Edit {number} names an adapter this project does not have for this model.",
                "Import the adapter first.",
                attr="plan",
            )
