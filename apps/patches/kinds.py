"""The jobs whose results live here: exporting a patch, certifying an export, importing an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import structlog
from django.db import transaction
from django.utils import timezone

from apps.artifacts.models import Artifact
from apps.core.errors import MicroscopeError, Refused
from apps.jobs.kinds import OUT, CloneRequest, JobKind, engine
from apps.jobs.models import Job
from apps.patches.models import Adapter, Certificate, Export, Gate
from apps.patches.plans import adapter_map, sae_map
from apps.registry.kinds import laid_out, model_params, rounded_model_params
from apps.registry.models import LanguageModel, Recording, ResultState
from microscope.params import CertifyParams, EditPlan, ImportAdapterParams, PatchExportParams

log = structlog.get_logger(__name__)


def _parts(plan: EditPlan, model: LanguageModel) -> dict[str, list[str]]:
    """Folders of the SAEs and adapters a plan names.

    Raises:
        Refused: ``unknown_sae`` or ``unknown_adapter`` when one has been deleted since.
    """
    saes, adapters = sae_map(model), adapter_map(model)
    for wanted, known, code, what in (
        (plan.saes(), saes, "unknown_sae", "An SAE"),
        (plan.adapters(), adapters, "unknown_adapter", "An adapter"),
    ):
        if wanted - set(known):
            raise Refused(
                code, f"{what} the patch names has been deleted.", "Restore it or change the patch."
            )
    return {
        "sae_path": _folders([saes[name].artifact for name in sorted(plan.saes())]),
        "adapter_path": _folders([adapters[name].artifact for name in sorted(plan.adapters())]),
    }


def _folders(found: list[Artifact | None]) -> list[str]:
    return [str(artifact.checkout()) for artifact in found if artifact is not None]


def _text(recording: Recording | None) -> dict[str, str]:
    if recording is None or recording.artifact is None:
        raise Refused(
            "no_recording", "The recording whose text was to be used is gone.", "Export the patch again."
        )
    return {"activations": str(recording.artifact.checkout())}


# --- export -------------------------------------------------------------------------------------------


def _load_export(pk: Any) -> Export:
    return Export.objects.select_related("patch__model", "recording__artifact", "artifact").get(pk=pk)


def _prepare_export(job: Job, workdir: Path) -> dict[str, Any]:
    export = _load_export(job.subject_id)
    model = export.patch.model
    plan = msgspec.convert(export.plan, type=EditPlan)
    file = workdir / "patch.json"
    file.write_bytes(msgspec.json.encode({"plan": plan}))
    config = {
        **job.params,
        "patch": str(file),
        "out": str(workdir / OUT),
        "base_name": model.reference if model.source == LanguageModel.Source.HUB else model.name,
        **model_params(model),
        **_parts(plan, model),
        **_text(export.recording),
    }
    earlier = _fitted_before(export)
    return {**config, "compiled": str(earlier.checkout())} if earlier is not None else config


def _fitted_before(export: Export) -> Artifact | None:
    """The files of an earlier export with a fit of the same patch; the engine checks that it suits."""
    rows = Export.objects.select_related("artifact").filter(
        project_id=export.project_id,
        patch__model_id=export.patch.model_id,
        fingerprint=export.fingerprint,
        state=ResultState.READY,
        grade="approximate",
    )
    same = ("rank", "fit_tokens", "fit_steps", "fit_seconds", "fit_blocks", "seed")
    for row in rows.order_by("-id"):
        fitted = row.manifest.get("fit") is not None
        if fitted and all(row.params.get(name) == export.params.get(name) for name in same):
            return row.artifact
    return None


def _exported(job: Job, result: dict[str, Any], digest: Any) -> None:
    Export.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY, manifest=result, grade=result["grade"], artifact=job.artifact
    )
    export = _load_export(job.subject_id)
    if job.created_by is None:
        return
    from apps.patches import exports

    try:
        with transaction.atomic():
            exports.start_certificate(actor=job.created_by, export=export, params={})
    except MicroscopeError as error:  # the person may have lost the right; somebody else can ask for it
        log.warning("certificate_not_started", export=str(export.pk), error=error.code)


def _clone_export(request: CloneRequest) -> Job:
    """The same target and text; of the patch as it is now."""
    from apps.patches import exports

    export, params = _load_export(request.job.subject_id), dict(request.params)
    target = params.pop("target")
    _, job = exports.start_export(
        actor=request.actor,
        patch=export.patch,
        target=target,
        params=params,
        recording=export.recording,
        idempotency_key=request.idempotency_key,
    )
    return job


EXPORT_PATCH = JobKind(
    name="export_patch",
    title="Export a patch",
    params_type=PatchExportParams,
    command=engine("patch", "export"),
    prepare=_prepare_export,
    on_success=_exported,
    fills=Export,
    artifact=Artifact.Kind.PATCH_EXPORT,
    clone=_clone_export,
    hub=True,
)


# --- certify ------------------------------------------------------------------------------------------


def _prepare_certify(job: Job, workdir: Path) -> dict[str, Any]:
    certificate = Certificate.objects.get(pk=job.subject_id)
    export = _load_export(certificate.export_id)
    if export.artifact is None:
        raise Refused("export_not_ready", f"The export is {export.state}.", status=409)
    plan = msgspec.convert(export.plan, type=EditPlan)
    return {
        **job.params,
        "export": str(export.artifact.checkout()),
        "out": str(workdir / OUT),
        **model_params(export.patch.model),
        **_parts(plan, export.patch.model),
        **_text(export.recording),
    }


def _certified(job: Job, result: dict[str, Any], digest: Any) -> None:
    passed = bool(result["passed"])
    Certificate.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY, passed=passed, report=result, artifact=job.artifact
    )
    # A new measurement is a new decision: an old override does not cover it.
    Export.objects.filter(certificates=job.subject_id).update(
        gate=Gate.PASSED if passed else Gate.BLOCKED,
        override_reason="",
        overridden_by=None,
        overridden_at=None,
    )


def _clone_certificate(request: CloneRequest) -> Job:
    from apps.patches import exports

    export = _load_export(Certificate.objects.get(pk=request.job.subject_id).export_id)
    _, job = exports.start_certificate(
        actor=request.actor,
        export=export,
        params=request.params,
        idempotency_key=request.idempotency_key,
    )
    return job


CERTIFY_EXPORT = JobKind(
    name="certify_export",
    title="Certify an export",
    params_type=CertifyParams,
    command=engine("patch", "certify"),
    prepare=_prepare_certify,
    on_success=_certified,
    fills=Certificate,
    artifact=Artifact.Kind.CERTIFICATE,
    work=lambda params: params["contexts"],
    clone=_clone_certificate,
    hub=True,
)


# --- import -------------------------------------------------------------------------------------------


def _prepare_import(job: Job, workdir: Path) -> dict[str, Any]:
    adapter = Adapter.objects.select_related("model").get(pk=job.subject_id)
    laid, paths = laid_out(job, workdir)
    # A browser that sends a folder keeps its name in the paths.
    source = (laid / min(paths, key=len)).parent
    return {
        **job.params,
        "path": str(source),
        "out": str(workdir / OUT),
        **rounded_model_params(adapter.model),
    }


def _imported(job: Job, result: dict[str, Any], digest: Any) -> None:
    from apps.patches import adapters

    adapter = Adapter.objects.select_related("model", "project").get(pk=job.subject_id)
    adapter.state, adapter.artifact = ResultState.READY, job.artifact
    adapter.fingerprint = result["adapter"]
    adapter.summary = {name: value for name, value in result.items() if name != "plan"}
    adapter.save()
    adapters.make_patch(
        adapter=adapter, plan=msgspec.convert(result["plan"], type=EditPlan), now=timezone.now()
    )


IMPORT_ADAPTER = JobKind(
    name="import_adapter",
    title="Import an adapter",
    params_type=ImportAdapterParams,
    command=engine("patch", "import"),
    prepare=_prepare_import,
    on_success=_imported,
    fills=Adapter,
    artifact=Artifact.Kind.ADAPTER,
    takes_in=True,
    hub=True,
)


KINDS = (EXPORT_PATCH, CERTIFY_EXPORT, IMPORT_ADAPTER)
