"""Taking patches out: start an export, certify it, let it through, give its files out."""

from __future__ import annotations

from typing import Any

import msgspec
from django.db import transaction
from django.utils import timezone

from apps.artifacts import services as artifacts
from apps.artifacts.models import Artifact
from apps.audit import services as audit
from apps.core.errors import Refused
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.patches.models import Certificate, Export, Gate, Patch
from apps.patches.plans import check_plan, sae_map, with_modules
from apps.patches.services import stored_plan
from apps.projects.policies import Action, require
from apps.registry.models import LanguageModel, Recording, ResultState
from apps.registry.readiness import model_not_ready
from microscope.params import ExportTarget, ModelTraits, Obstacles, Verdict, verdict, verdicts


def traits_of(model: LanguageModel) -> ModelTraits:
    """What the verdicts need to know of a model.

    Raises:
        Refused: ``model_not_ready``.
    """
    facts = model.facts
    if model.n_layers is None:
        raise model_not_ready(model)
    return ModelTraits(
        model_type=str(facts.get("model_type") or facts.get("family")),
        n_layers=model.n_layers,
        tied=bool(facts.get("tied", False)),
        writer_bias=bool(facts.get("writer_bias", False)),
        found=msgspec.convert(facts["obstacles"], Obstacles) if "obstacles" in facts else None,
    )


def targets_of(patch: Patch) -> tuple[Verdict, ...]:
    """What every target can hold of a patch as it is now."""
    return verdicts(with_modules(stored_plan(patch), patch.model), traits_of(patch.model))


def recording_for(patch: Patch) -> Recording | None:
    """The text a patch is fitted and measured on: the recording of one of its SAEs, or any of its model."""
    named = stored_plan(patch).saes()
    for fingerprint, sae in sae_map(patch.model).items():
        recording: Recording | None = getattr(sae, "recording", None)
        if fingerprint in named and recording is not None and recording.state == ResultState.READY:
            return recording
    rows = Recording.objects.filter(model=patch.model, project_id=patch.project_id, state=ResultState.READY)
    return rows.order_by("-id").first()


def start_export(
    *,
    actor: Any,
    patch: Patch,
    target: ExportTarget,
    params: dict[str, Any],
    recording: Recording | None = None,
    idempotency_key: str = "",
) -> tuple[Export, Job]:
    """Write a patch for one target; its certificate is measured right after.

    Raises:
        Refused: ``not_possible`` with the reason, ``no_recording``, ``wrong_recording``, or what
            :func:`check_plan` raises.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, patch.project_id)
    plan = stored_plan(patch)
    check_plan(plan, patch.model)
    judged = verdict(with_modules(plan, patch.model), traits_of(patch.model), target)
    if patch.model.is_quantised:
        raise Refused(
            "model_is_rounded",
            f"The patch was made on weights rounded to {patch.model.dtype}; exports are written and measured "
            "against whole ones, where the same edits do something else.",
            "Add the model without rounding, and make the patch there.",
            status=409,
        )
    if judged.grade == "not_possible":
        raise Refused("not_possible", judged.reason, judged.hint, status=409, attr="target")
    text = recording or recording_for(patch)
    if text is None:
        raise Refused(
            "no_recording",
            "There is no text to measure the export on.",
            "Record some text with this model first.",
            status=409,
        )
    if text.model_id != patch.model_id or text.state != ResultState.READY:
        raise Refused(
            "wrong_recording", "The recording is not a finished one of this patch's model.", attr="recording"
        )
    export = Export(
        project_id=patch.project_id,
        patch=patch,
        patch_version=patch.version,
        plan=msgspec.to_builtins(plan),
        fingerprint=patch.fingerprint,
        target=target,
        grade=judged.grade,
        recording=text,
        created_by=actor,
    )

    def make() -> Job:
        job = jobs.submit(
            actor=actor,
            project=patch.project,
            kind="export_patch",
            title=f"Export {patch.name}: {judged.title}",
            subject=export,
            params={**params, "target": target},
            idempotency_key=idempotency_key,
        )
        export.params, export.job = job.params, job
        export.save(force_insert=True)
        audit.record(
            actor=actor,
            action="export.requested",
            target=export,
            project_id=patch.project_id,
            data={"patch": str(patch.pk), "version": patch.version, "target": target, "grade": judged.grade},
        )
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="export_patch",
        idempotency_key=idempotency_key,
        make=make,
        results=Export,
        project_id=patch.project_id,
    )
    return Export.objects.for_display().get(pk=job.subject_id), job


def start_certificate(
    *, actor: Any, export: Export, params: dict[str, Any], idempotency_key: str = ""
) -> tuple[Export, Job]:
    """Measure an export on its reloaded files; a new certificate replaces the verdict of the last.

    Raises:
        Refused: ``export_not_ready``.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, export.project_id)
    if export.state != ResultState.READY:
        raise Refused(
            "export_not_ready", f"The export is {export.state}.", "Wait until it is written.", status=409
        )
    certificate = Certificate(export=export, created_by=actor)

    def make() -> Job:
        job = jobs.submit(
            actor=actor,
            project=export.project,
            kind="certify_export",
            title=f"Certify {export.patch.name}: {export.target}",
            subject=certificate,
            params=params,
            idempotency_key=idempotency_key,
        )
        certificate.params, certificate.job = job.params, job
        certificate.save(force_insert=True)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="certify_export",
        idempotency_key=idempotency_key,
        make=make,
        results=Certificate,
        project_id=export.project_id,
    )
    return Export.objects.for_display().get(pk=export.pk), job


def newest_certificate(export: Export) -> Certificate | None:
    """The newest finished certificate of an export."""
    rows = Certificate.objects.select_related("artifact").filter(export=export, state=ResultState.READY)
    return rows.order_by("-id").first()


@transaction.atomic
def override_gates(*, actor: Any, export: Export, reason: str) -> Export:
    """Let an export out although its certificate did not pass. Who, when and why are kept and audited.

    Raises:
        Refused: ``not_certified`` or ``nothing_to_override``.
    """
    require(actor, Action.OVERRIDE_GATES, export.project_id)
    export = Export.objects.select_for_update().get(pk=export.pk)
    certificate = newest_certificate(export)
    if certificate is None:
        raise Refused("not_certified", "This export has no certificate yet.", "Measure it first.", status=409)
    if export.gate != Gate.BLOCKED:
        raise Refused("nothing_to_override", "This export is not blocked.", status=409)
    export.gate, export.override_reason = Gate.OVERRIDDEN, reason
    export.overridden_by, export.overridden_at = actor, timezone.now()
    export.save(update_fields=["gate", "override_reason", "overridden_by", "overridden_at"])
    audit.record(
        actor=actor,
        action="export.overridden",
        target=export,
        project_id=export.project_id,
        data={"reason": reason, "certificate": str(certificate.pk), "failed": failed_gates(certificate)},
    )
    return Export.objects.for_display().get(pk=export.pk)


def failed_gates(certificate: Certificate) -> list[str]:
    """The gates a certificate did not pass, with their numbers."""
    gates = certificate.report.get("gates", [])
    return [_gate_in_words(gate) for gate in gates if gate.get("passed") is not True]


def _gate_in_words(gate: dict[str, Any]) -> str:
    value = gate.get("value")
    shown = "not measured" if value is None else f"{value:.3g}"
    how = "at least" if gate.get("at_least") else "limit"
    return f"{gate['name']}: {shown} ({how} {gate['limit']:g})"


def open_gate(*, actor: Any, export: Export, what: str) -> Artifact:
    """The files of an export, if they may leave. The download is audited.

    Raises:
        Refused: ``export_not_ready``, ``not_certified`` or ``gates_not_passed`` with the numbers (409).
    """
    require(actor, Action.DOWNLOAD, export.project_id)
    if export.artifact is None:
        raise Refused("export_not_ready", f"The export is {export.state}.", status=409)
    if export.gate == Gate.UNCERTIFIED:
        raise Refused(
            "not_certified",
            "This export has not been measured yet.",
            "Wait for its certificate, or ask for one.",
            status=409,
        )
    if export.gate == Gate.BLOCKED:
        certificate = newest_certificate(export)
        failed = failed_gates(certificate) if certificate is not None else []
        raise Refused(
            "gates_not_passed",
            f"The export did not pass its gates. {'; '.join(failed)}.",
            "An owner of the project can let it through, with a reason.",
            status=409,
        )
    audit.record(
        actor=actor,
        action="export.downloaded",
        target=export,
        project_id=export.project_id,
        data={"file": what, "gate": export.gate, "target": export.target},
    )
    return export.artifact


@transaction.atomic
def delete_export(*, actor: Any, export: Export) -> None:
    """Remove an export, its certificates and their files.

    Raises:
        Refused: ``job_active``.
    """
    require(actor, Action.DELETE, export.project_id)
    jobs.refuse_while_active(export)
    for certificate in export.certificates.all():
        jobs.refuse_while_active(certificate)
    audit.record(
        actor=actor,
        action="export.deleted",
        target=export,
        project_id=export.project_id,
        data={"target": export.target, "fingerprint": export.fingerprint},
    )
    owned = files_of([export])
    export.delete()
    for artifact in owned:
        artifacts.delete_artifact(artifact)


def files_of(rows: list[Export]) -> list[Artifact]:
    """The artifacts of exports and of their certificates."""
    ids = [export.artifact_id for export in rows]
    ids += Certificate.objects.filter(export__in=rows).values_list("artifact_id", flat=True)
    return list(Artifact.objects.filter(pk__in=[pk for pk in ids if pk is not None]))
