"""Texts and recordings of others: uploaded files become rows once a job has looked at them; recordings as one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from apps.artifacts import uploads
from apps.audit import services as audit
from apps.core.errors import refuse_taken_name
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.projects.policies import Action, require
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.readiness import model_not_ready, recording_not_ready
from apps.registry.services import add_corpus


def import_corpus(
    *,
    actor: Any,
    project: Project,
    name: str,
    files: Sequence[UUID],
    params: dict[str, Any],
    idempotency_key: str = "",
) -> tuple[Corpus, Job]:
    """Add an uploaded text, which a job reads from the first byte to the last before it counts.

    Args:
        files: the finished upload of the actor.

    Raises:
        Refused: ``name_taken``, or what :func:`apps.artifacts.uploads.take` raises.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.EDIT, project)
    corpus = Corpus(project=project, name=name, kind=Corpus.Kind.UPLOAD, created_by=actor)

    def make() -> Job:
        job = jobs.submit(
            actor=actor,
            project=project,
            kind="import_corpus",
            title=f"Import {name}",
            subject=corpus,
            params=params,
            idempotency_key=idempotency_key,
        )
        [upload] = uploads.take(actor=actor, ids=files, project_id=project.pk, used_by=job.pk)
        corpus.reference, corpus.bytes = upload.path.rsplit("/", 1)[-1], upload.bytes
        corpus.text_field, corpus.job = job.params["text_field"], job
        add_corpus(actor, corpus)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="import_corpus",
        idempotency_key=idempotency_key,
        make=make,
        results=Corpus,
        project_id=project.pk,
    )
    return Corpus.objects.get(pk=job.subject_id), job


def import_recording(
    *, actor: Any, model: LanguageModel, name: str, files: Sequence[UUID], idempotency_key: str = ""
) -> tuple[Recording, Job]:
    """Bring in a recording of the model: every value is looked at, and the weights it was made of are compared.

    Args:
        files: finished uploads of the actor: the files of a recording, or its archive.

    Raises:
        Refused: ``model_not_ready``, ``name_taken``, or what :func:`apps.artifacts.uploads.take` raises.
    """
    require(actor, Action.RUN_JOBS, model.project_id)
    recording = Recording(project=model.project, model=model, name=name, tokens=0, created_by=actor)

    def make() -> Job:
        if model.state != ResultState.READY:
            raise model_not_ready(model)
        job = jobs.submit(
            actor=actor,
            project=model.project,
            kind="import_recording",
            title=f"Import {name}",
            subject=recording,
            params={},
            idempotency_key=idempotency_key,
        )
        uploads.take(actor=actor, ids=files, project_id=model.project_id, used_by=job.pk)
        recording.job = job
        with refuse_taken_name(name, "recording"):
            recording.save(force_insert=True)
        audit.record(
            actor=actor, action="recording.import_started", target=recording, project_id=model.project_id
        )
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="import_recording",
        idempotency_key=idempotency_key,
        make=make,
        results=Recording,
        project_id=model.project_id,
    )
    return Recording.objects.for_display().get(pk=job.subject_id), job


def export_recording(*, actor: Any, recording: Recording, idempotency_key: str = "") -> Job:
    """Pack a recording into one archive; the job's artifact is what to download.

    Raises:
        Refused: ``recording_not_ready``.
    """
    require(actor, Action.RUN_JOBS, recording.project_id)

    def make() -> Job:
        if recording.artifact is None:
            raise recording_not_ready(recording)
        job = jobs.submit(
            actor=actor,
            project=recording.project,
            kind="export_recording",
            title=f"Export {recording.name}",
            subject=recording,
            params={},
            idempotency_key=idempotency_key,
        )
        audit.record(
            actor=actor,
            action="recording.export_started",
            target=recording,
            project_id=recording.project_id,
        )
        return job

    return jobs.submit_once(
        actor=actor,
        kind="export_recording",
        idempotency_key=idempotency_key,
        make=make,
        results=Recording,
        project_id=recording.project_id,
        subject_id=recording.pk,
    )
