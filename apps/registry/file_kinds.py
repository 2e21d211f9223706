"""The jobs that take over texts and recordings of others, and pack recordings."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from apps.artifacts import uploads
from apps.artifacts.models import Artifact
from apps.jobs.kinds import INCOMING, OUT, CloneRequest, JobKind, engine_command, never
from apps.jobs.models import Job
from apps.projects.quotas import room_bytes
from apps.registry.kinds import rounded_model_place, set_state
from apps.registry.models import Corpus, Recording, ResultState
from apps.registry.readiness import recording_not_ready
from microscope.params import Site
from microscope.params.files import ImportCorpusParams, ImportRecordingParams, PackRecordingParams


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
    uploads.discard(uploads.used_by(job.pk))


IMPORT_CORPUS = JobKind(
    name="import_corpus",
    title="Import a corpus",
    params_type=ImportCorpusParams,
    command=lambda: engine_command("corpus", "import"),
    prepare=_prepare_corpus,
    on_success=_corpus_in,
    on_failure=set_state(Corpus, ResultState.FAILED),
    on_retry=set_state(Corpus, ResultState.PENDING),
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
        **rounded_model_place(model),
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
    uploads.discard(uploads.used_by(job.pk))


IMPORT_RECORDING = JobKind(
    name="import_recording",
    title="Import a recording",
    params_type=ImportRecordingParams,
    command=lambda: engine_command("recording", "import"),
    prepare=_prepare_recording,
    on_success=_recording_in,
    on_failure=set_state(Recording, ResultState.FAILED),
    on_retry=set_state(Recording, ResultState.PENDING),
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
    command=lambda: engine_command("recording", "pack"),
    prepare=_prepare_pack,
    on_success=lambda job, result, digest: None,
    artifact=Artifact.Kind.EXPORT,
    clone=_clone_export,
    computes=never,
)
