"""The jobs whose results live here: looking at a model, recording activations, taking over texts and recordings of
others, and packing recordings.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from apps.artifacts import uploads
from apps.artifacts.models import Artifact
from apps.core.hosts import file_elsewhere, this_host
from apps.jobs.kinds import INCOMING, OUT, CloneRequest, JobKind, engine, never
from apps.jobs.models import Job
from apps.projects.quotas import room_bytes
from apps.registry.mixtures import text_params
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.readiness import recording_not_ready
from microscope.params import InspectParams, Site, TraceParams
from microscope.params.files import ImportCorpusParams, ImportRecordingParams, PackRecordingParams


def model_params(model: LanguageModel) -> dict[str, Any]:
    """The engine's parameters that say where a model is.

    Raises:
        Refused: ``file_elsewhere`` when its folder or file is on another host.
    """
    here = model.source == LanguageModel.Source.HUB or model.host in ("", this_host())
    if not here and not Path(model.locate()).exists():
        raise file_elsewhere(
            f"The model {model.reference}",
            model.host,
            "Put it below a model folder of this host, too, or add the model by its Hub id.",
        )
    revision = {"revision": model.revision} if model.revision else {}
    return {"model": model.locate(), **revision}


def rounded_model_params(model: LanguageModel) -> dict[str, Any]:
    """:func:`model_params`, with the precision when weights are rounded: that makes it another model."""
    params = model_params(model)
    return {**params, "dtype": model.dtype} if model.is_quantised else params


def laid_out(job: Job, workdir: Path) -> tuple[Path, list[str]]:
    """The folder with a job's uploads and their paths in it; what an earlier attempt has written is gone.

    Raises:
        Refused: ``upload_gone``.
    """
    shutil.rmtree(workdir / OUT, ignore_errors=True)
    folder = workdir / INCOMING
    return folder, uploads.lay_out(job.pk, folder)


def room_for(job: Job) -> int:
    """Bytes a job may unpack: its uploads count for its project and its person until the result takes their place."""
    sent = sum(upload.bytes for upload in uploads.used_by(job.pk))
    return room_bytes(job.project_id, job.created_by_id) + sent


# --- inspect ------------------------------------------------------------------------------------------


def _prepare_inspect(job: Job, workdir: Path) -> dict[str, Any]:
    return rounded_model_params(LanguageModel.objects.get(pk=job.subject_id))


def _inspected(job: Job, result: dict[str, Any], digest: Any) -> None:
    fingerprint = result.pop("fingerprint", "")
    known = {"fingerprint": fingerprint} if fingerprint else {}
    LanguageModel.objects.filter(pk=job.subject_id).update(state=ResultState.READY, facts=result, **known)


INSPECT_MODEL = JobKind(
    name="inspect_model",
    title="Look at a model",
    params_type=InspectParams,
    command=engine("inspect"),
    prepare=_prepare_inspect,
    on_success=_inspected,
    fills=LanguageModel,
    takes_in=True,
    hub=True,
)


# --- trace --------------------------------------------------------------------------------------------


def _prepare_trace(job: Job, workdir: Path) -> dict[str, Any]:
    recording = Recording.objects.select_related("model", "corpus__artifact").get(pk=job.subject_id)
    config = {**job.params, **model_params(recording.model), **text_params(recording)}
    if config["dtype"] == "auto":
        config["dtype"] = recording.model.dtype
    return {**config, "out": str(workdir / OUT), "resume": True}


def _traced(job: Job, result: dict[str, Any], digest: Any) -> None:
    Recording.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY,
        summary=result,
        fingerprint=result["fingerprint"],
        tokens=result["tokens"],
        artifact=job.artifact,
    )
    weights = result.get("model", {}).get("fingerprint", "")
    LanguageModel.objects.filter(recordings=job.subject_id, fingerprint="").update(fingerprint=weights)


def _clone_trace(request: CloneRequest) -> Job:
    from apps.registry.services import start_recording

    recording = Recording.objects.select_related("model__project", "corpus").get(pk=request.job.subject_id)
    _, job = start_recording(
        actor=request.actor,
        model=recording.model,
        parts=recording.texts(),
        name=request.name,
        params=request.params,
        idempotency_key=request.idempotency_key,
    )
    return job


TRACE = JobKind(
    name="trace",
    title="Record activations",
    params_type=TraceParams,
    command=engine("trace"),
    prepare=_prepare_trace,
    on_success=_traced,
    fills=Recording,
    artifact=Artifact.Kind.RECORDING,
    # Every token passes every block up to the highest that is recorded.
    work=lambda params: params["tokens"] * (1 + max(params["layers"])),
    clone=_clone_trace,
    named=True,
    hub=True,
)


# --- corpora ------------------------------------------------------------------------------------------


def _prepare_corpus(job: Job, workdir: Path) -> dict[str, Any]:
    folder, names = laid_out(job, workdir)
    return {**job.params, "path": str(folder / names[0]), "out": str(workdir / OUT)}


def _corpus_in(job: Job, result: dict[str, Any], digest: Any) -> None:
    Corpus.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY,
        bytes=result["bytes"],
        documents=result["documents"],
        artifact=job.artifact,
    )


IMPORT_CORPUS = JobKind(
    name="import_corpus",
    title="Import a corpus",
    params_type=ImportCorpusParams,
    command=engine("corpus", "import"),
    prepare=_prepare_corpus,
    on_success=_corpus_in,
    fills=Corpus,
    artifact=Artifact.Kind.CORPUS,
    takes_in=True,
    computes=never,
)


# --- recordings ---------------------------------------------------------------------------------------


def _prepare_recording(job: Job, workdir: Path) -> dict[str, Any]:
    model = Recording.objects.select_related("model").get(pk=job.subject_id).model
    folder, _ = laid_out(job, workdir)
    return {
        **job.params,
        **rounded_model_params(model),
        "path": str(folder),
        "out": str(workdir / OUT),
        "model_fingerprint": model.fingerprint,
        "d_model": model.facts.get("d_model"),
        "n_layers": model.n_layers,
        "max_bytes": room_for(job),
    }


def _recording_in(job: Job, result: dict[str, Any], digest: Any) -> None:
    sites = [Site.parse(site["site"]) for site in result["sites"]]
    Recording.objects.filter(pk=job.subject_id).update(
        state=ResultState.READY,
        summary=result,
        fingerprint=result["fingerprint"],
        tokens=result["tokens"],
        layers=sorted({site.layer for site in sites}),
        sites=list(dict.fromkeys(site.kind for site in sites)),
        artifact=job.artifact,
    )


IMPORT_RECORDING = JobKind(
    name="import_recording",
    title="Import a recording",
    params_type=ImportRecordingParams,
    command=engine("recording", "import"),
    prepare=_prepare_recording,
    on_success=_recording_in,
    fills=Recording,
    artifact=Artifact.Kind.RECORDING,
    takes_in=True,
    # A model of which the fingerprint is known is not loaded.
    computes=lambda config: not config["model_fingerprint"],
    hub=True,
)


def _prepare_pack(job: Job, workdir: Path) -> dict[str, Any]:
    recording = Recording.objects.select_related("artifact").get(pk=job.subject_id)
    if recording.artifact is None:
        raise recording_not_ready(recording)
    return {**job.params, "activations": str(recording.artifact.checkout()), "out": str(workdir / OUT)}


def _clone_export(request: CloneRequest) -> Job:
    from apps.registry.imports import export_recording

    recording = Recording.objects.select_related("project", "artifact").get(pk=request.job.subject_id)
    return export_recording(actor=request.actor, recording=recording, idempotency_key=request.idempotency_key)


EXPORT_RECORDING = JobKind(
    name="export_recording",
    title="Export a recording",
    params_type=PackRecordingParams,
    command=engine("recording", "pack"),
    prepare=_prepare_pack,
    artifact=Artifact.Kind.EXPORT,
    clone=_clone_export,
    computes=never,
)


KINDS = (INSPECT_MODEL, IMPORT_CORPUS, TRACE, IMPORT_RECORDING, EXPORT_RECORDING)
