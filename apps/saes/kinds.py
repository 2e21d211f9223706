"""The jobs whose results live here: training an SAE, evaluating it, bringing one in, taking one out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.artifacts.models import Artifact
from apps.core.errors import Refused
from apps.jobs.kinds import OUT, CloneRequest, JobKind, engine
from apps.jobs.models import Job
from apps.registry.kinds import laid_out, model_params, rounded_model_params
from apps.registry.models import ResultState
from apps.registry.readiness import recording_not_ready
from apps.saes.models import Evaluation, Sae
from apps.saes.readiness import sae_not_ready
from microscope.params import EvaluateParams, ExportParams, ImportParams, Site, TrainParams


def sae_params(sae: Sae) -> dict[str, str]:
    """The engine's parameters that say where an SAE, its recording and its model are.

    The recording itself may have come from elsewhere, and then only names its model.

    Raises:
        Refused: ``sae_not_ready``, ``no_recording``, ``recording_not_ready`` or ``file_elsewhere``.
    """
    if sae.artifact is None:
        raise sae_not_ready(sae)
    recording = recording_folder(sae)
    return {
        "sae_path": str(sae.artifact.checkout()),
        "activations": recording,
        "model": model_params(sae.model)["model"],
    }


def recording_folder(sae: Sae) -> str:
    """Where the recording of an SAE is.

    Raises:
        Refused: ``no_recording`` or ``recording_not_ready``.
    """
    if sae.recording is None:
        raise Refused(
            "no_recording",
            f"The SAE “{sae.name}” was imported and has no recording.",
            "Name one of its model when you start this.",
            status=409,
        )
    if sae.recording.artifact is None:
        raise recording_not_ready(sae.recording)
    return str(sae.recording.artifact.checkout())


def load_sae(job: Job) -> Sae:
    """The SAE a job is about, with its files."""
    rows = Sae.objects.select_related("model", "artifact", "recording__artifact")
    return rows.get(pk=job.subject_id)


# --- train --------------------------------------------------------------------------------------------


def _prepare_train(job: Job, workdir: Path) -> dict[str, Any]:
    sae = load_sae(job)
    return {
        **job.params,
        "activations": recording_folder(sae),
        "out": str(workdir / OUT),
        "resume": True,
    }


def _trained(job: Job, result: dict[str, Any], digest: Any) -> None:
    Sae.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY,
        summary=result,
        fingerprint=result["fingerprint"],
        architecture=result["architecture"],
        width=result["n_latents"],
        k=result.get("k"),
        artifact=job.artifact,
    )


def _clone_train(request: CloneRequest) -> Job:
    from apps.saes.services import start_training

    sae = Sae.objects.select_related("recording__project").get(pk=request.job.subject_id)
    assert sae.recording is not None  # it was trained on one
    _, job = start_training(
        actor=request.actor,
        recording=sae.recording,
        name=request.name,
        params=request.params,
        idempotency_key=request.idempotency_key,
    )
    return job


TRAIN = JobKind(
    name="train",
    title="Train an SAE",
    params_type=TrainParams,
    command=engine("train"),
    prepare=_prepare_train,
    on_success=_trained,
    fills=Sae,
    artifact=Artifact.Kind.SAE,
    work=lambda params: params["tokens"] * sum(params["width"]),
    clone=_clone_train,
    named=True,
)


# --- evaluate -----------------------------------------------------------------------------------------


def _prepare_evaluate(job: Job, workdir: Path) -> dict[str, Any]:
    return {**job.params, **sae_params(load_sae(job)), "out": str(workdir / OUT)}


def _evaluated(job: Job, result: dict[str, Any], digest: Any) -> None:
    details = {name: value for name, value in result.items() if name not in ("metrics", "goals")}
    Evaluation.objects.create(
        sae_id=job.subject_id,
        job=job,
        metrics=result["metrics"],
        goals=result["goals"],
        details=details,
        artifact=job.artifact,
    )


def clone_sae_job(kind: str, title: str) -> Callable[[CloneRequest], Job]:
    """Does a job about a finished SAE once more."""

    def again(request: CloneRequest) -> Job:
        from apps.saes.services import start_sae_job

        return start_sae_job(
            actor=request.actor,
            sae=Sae.objects.select_related("project").get(pk=request.job.subject_id),
            kind=kind,
            title=title,
            params=request.params,
            idempotency_key=request.idempotency_key,
        )

    return again


EVALUATE = JobKind(
    name="evaluate",
    title="Evaluate an SAE",
    params_type=EvaluateParams,
    command=engine("eval"),
    prepare=_prepare_evaluate,
    on_success=_evaluated,
    artifact=Artifact.Kind.EVALUATION,
    work=lambda params: 1.0 + params["loss_contexts"],
    clone=clone_sae_job("evaluate", "Evaluate"),
    hub=True,
)


# --- import -------------------------------------------------------------------------------------------


def _prepare_import(job: Job, workdir: Path) -> dict[str, Any]:
    sae = load_sae(job)
    folder, _ = laid_out(job, workdir)
    config: dict[str, Any] = {**job.params, "path": str(folder), "out": str(workdir / OUT), "untrusted": True}
    if sae.recording is not None:
        return {**config, "activations": recording_folder(sae)}
    return {**config, **rounded_model_params(sae.model)}


def _imported(job: Job, result: dict[str, Any], digest: Any) -> None:
    site = Site.parse(result["site"])
    Sae.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY,
        summary=result,
        fingerprint=result["fingerprint"],
        architecture=result["architecture"],
        width=result["n_latents"],
        k=result.get("k"),
        layer=site.layer,
        site=site.kind,
        artifact=job.artifact,
    )


IMPORT = JobKind(
    name="import_sae",
    title="Import an SAE",
    params_type=ImportParams,
    command=engine("import"),
    prepare=_prepare_import,
    on_success=_imported,
    fills=Sae,
    artifact=Artifact.Kind.SAE,
    takes_in=True,
    hub=True,
)


# --- export -------------------------------------------------------------------------------------------


def _prepare_export(job: Job, workdir: Path) -> dict[str, Any]:
    sae = load_sae(job)
    if sae.artifact is None:
        raise sae_not_ready(sae)
    config = {**job.params, "sae_path": str(sae.artifact.checkout()), "out": str(workdir / OUT)}
    analysis = getattr(sae, "analysis", None)
    return config if analysis is None else {**config, "analysis": str(analysis.artifact.checkout())}


def _clone_export(request: CloneRequest) -> Job:
    from apps.saes.services import export_sae

    return export_sae(
        actor=request.actor,
        sae=load_sae(request.job),
        params=request.params,
        idempotency_key=request.idempotency_key,
    )


EXPORT = JobKind(
    name="export_sae",
    title="Export an SAE",
    params_type=ExportParams,
    command=engine("export"),
    prepare=_prepare_export,
    artifact=Artifact.Kind.EXPORT,
    clone=_clone_export,
)


KINDS = (TRAIN, EVALUATE, IMPORT, EXPORT)
