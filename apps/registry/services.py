"""Adding models and texts, recording activations, loading models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from apps.artifacts import services as artifacts
from apps.artifacts import uploads
from apps.artifacts.models import Artifact, Upload
from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import Refused, refuse_if_in_use, refuse_taken_name
from apps.core.etags import lock_unchanged
from apps.jobs import services as jobs
from apps.jobs.models import Job, Pipeline
from apps.projects.models import Project
from apps.projects.policies import Action, require
from apps.registry import references
from apps.registry.mixtures import check_parts, store_parts
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.readiness import model_not_ready
from microscope.params.precisions import QUANTISED


def create_model(
    *,
    actor: Any,
    project: Project,
    name: str,
    source: str,
    reference: str,
    revision: str = "",
    dtype: str = LanguageModel.Dtype.AUTO,
    idempotency_key: str = "",
) -> tuple[LanguageModel, Job]:
    """Add a model and queue a look at it, which fills in its facts or says what is wrong with it.

    Raises:
        Refused: ``bad_hub_id``, ``bad_revision``, ``path_not_allowed``, ``no_such_path``, ``name_taken``.
    """
    require(actor, Action.EDIT, project)
    if source == LanguageModel.Source.HUB:
        reference = references.check_hub_id(reference)
    else:
        reference = references.check_path(
            reference,
            roots=settings.WORKBENCH_MODEL_DIRS,
            anywhere=actor.acts_as_staff,
            want_file=source == LanguageModel.Source.GGUF,
        )
    revision = references.check_revision(revision)

    def make() -> Job:
        with refuse_taken_name(name, "model"):
            model = LanguageModel.objects.create(
                project=project,
                name=name,
                source=source,
                reference=reference,
                revision=revision,
                dtype=dtype,
                created_by=actor,
            )
        job = jobs.submit(
            actor=actor,
            project=project,
            kind="inspect_model",
            title=f"Look at {name}",
            subject=model,
            params={},
            idempotency_key=idempotency_key,
        )
        model.job = job
        model.save(update_fields=["job"])
        audit.record(
            actor=actor,
            action="model.added",
            target=model,
            project_id=project.pk,
            data={"source": source, "reference": reference},
        )
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="inspect_model",
        idempotency_key=idempotency_key,
        make=make,
        results=LanguageModel,
        project_id=project.pk,
    )
    return LanguageModel.objects.for_display().get(pk=job.subject_id), job


@transaction.atomic
def set_wanted(*, actor: Any, model: LanguageModel, wanted: bool) -> LanguageModel:
    """Say whether the model should be in memory. The agent of a model host makes it so.

    Raises:
        Refused: ``model_failed`` when it is known not to load.
    """
    require(actor, Action.LOAD_MODELS, model.project_id)
    if wanted and model.state == ResultState.FAILED:
        error = model.job.error_message if model.job is not None else ""
        raise Refused(
            "model_failed",
            f"This model cannot be loaded. {error}".strip(),
            "Correct or remove it.",
            status=409,
        )
    if wanted:
        # Asking again is how people try a model that failed to load once more.
        model.load_asked_at = clock.now()
        model.save(update_fields=["load_asked_at"])
    if model.wanted_loaded != wanted:
        model.wanted_loaded = wanted
        model.save(update_fields=["wanted_loaded"])
        action = "model.load_asked" if wanted else "model.unload_asked"
        audit.record(actor=actor, action=action, target=model, project_id=model.project_id)
    return model


def create_corpus(
    *,
    actor: Any,
    project: Project,
    name: str,
    kind: str,
    reference: str = "",
    text_field: str = "text",
) -> Corpus:
    """Add text that needs no looking at: a built-in corpus by name, or a Hub dataset by id.

    Raises:
        Refused: ``unknown_corpus``, ``bad_hub_id``, ``bad_dataset`` or ``name_taken``.
    """
    require(actor, Action.EDIT, project)
    values: dict[str, Any] = {"kind": kind, "reference": reference, "text_field": text_field or "text"}
    if kind == Corpus.Kind.HUB_DATASET:
        references.check_dataset(reference)
    else:
        offered = references.builtin_corpora()
        if reference not in offered:
            raise Refused(
                "unknown_corpus",
                f"The server offers no corpus '{reference[:120]}'.",
                f"It offers {', '.join(offered) or 'none yet'}.",
                attr="reference",
            )
        values["bytes"] = references.size_of(offered[reference])
    with transaction.atomic():
        corpus = Corpus(project=project, name=name, state=ResultState.READY, created_by=actor, **values)
        return add_corpus(actor, corpus)


def add_corpus(actor: Any, corpus: Corpus) -> Corpus:
    """Store a new corpus. Call inside a transaction.

    Raises:
        Refused: ``name_taken``.
    """
    with refuse_taken_name(corpus.name, "corpus"):
        corpus.save(force_insert=True)
    audit.record(
        actor=actor,
        action="corpus.added",
        target=corpus,
        project_id=corpus.project_id,
        data={"kind": corpus.kind},
    )
    return corpus


def start_recording(
    *,
    actor: Any,
    model: LanguageModel,
    parts: Sequence[tuple[Corpus, float]],
    name: str,
    params: dict[str, Any],
    idempotency_key: str = "",
    pipeline: Pipeline | None = None,
) -> tuple[Recording, Job]:
    """Record activations of a model on a corpus, or on several mixed.

    Args:
        parts: the corpora, each with its share of tokens; one alone has any weight.
        pipeline: the chain of jobs this one begins.

    Raises:
        Refused: ``model_not_ready``, ``name_taken``, ``another_precision``, or what
            :func:`apps.registry.mixtures.check_parts` raises.
        MicroscopeError: ``bad_parameters``, ``layer_out_of_range``.
    """
    require(actor, Action.RUN_JOBS, model.project_id)
    check_parts(parts, model)

    def make() -> Job:
        if model.state != ResultState.READY or model.n_layers is None:
            raise model_not_ready(model)
        job = jobs.submit(
            actor=actor,
            project=model.project,
            kind="trace",
            title=f"Record {name}",
            subject=recording,
            params=params,
            idempotency_key=idempotency_key,
            pipeline=pipeline,
        )
        beyond = [layer for layer in job.params["layers"] if layer < 0 or layer >= model.n_layers]
        if beyond:
            raise Refused(
                "layer_out_of_range",
                f"There is no block {beyond[0]}; the model's last block is {model.n_layers - 1}.",
                "Blocks are counted from 0.",
                attr="params",
            )
        _refuse_another_precision(model, job.params["dtype"])
        recording.layers, recording.sites = job.params["layers"], job.params["site"]
        recording.tokens, recording.job = job.params["tokens"], job
        with refuse_taken_name(name, "recording"):
            recording.save(force_insert=True)
        store_parts(recording, parts)
        return job

    # The job is made first because it checks the parameters the row repeats.
    recording = Recording(project=model.project, model=model, corpus=parts[0][0], name=name, created_by=actor)
    job = jobs.submit_once(
        actor=actor,
        kind="trace",
        idempotency_key=idempotency_key,
        make=make,
        results=Recording,
        project_id=model.project_id,
    )
    return Recording.objects.for_display().get(pk=job.subject_id), job


def _refuse_another_precision(model: LanguageModel, dtype: str) -> None:
    """Rounded weights are other weights: what is recorded from them belongs to another model."""
    if dtype != "auto" and (model.is_quantised or dtype in QUANTISED) and dtype != model.dtype:
        raise Refused(
            "another_precision",
            f"The model was added with the precision {model.dtype}; in {dtype} it has other weights.",
            f"Add the model once more with the precision {dtype}, or leave the precision out.",
            attr="params",
        )


@transaction.atomic
def rename(*, actor: Any, row: Any, name: str, made_from: str | None = None) -> None:
    """Give a model, corpus, recording or SAE another name.

    Args:
        made_from: the ETag the change was made from.

    Raises:
        Conflict: somebody changed it since.
        Refused: ``name_taken``.
    """
    require(actor, Action.EDIT, row.project_id)
    now = lock_unchanged(row, made_from)
    before, now.name = now.name, name
    with refuse_taken_name(name, str(now._meta.verbose_name)):
        now.save(update_fields=["name"])
    audit.record(
        actor=actor,
        action=f"{str(now._meta.verbose_name).rsplit(' ', 1)[-1].lower()}.renamed",
        target=now,
        project_id=now.project_id,
        data={"before": before, "after": name},
    )


@transaction.atomic
def delete_model(*, actor: Any, model: LanguageModel) -> None:
    """Remove a model nothing was recorded with.

    Raises:
        Refused: ``in_use`` or ``job_active``.
    """
    require(actor, Action.DELETE, model.project_id)
    jobs.refuse_while_active(model)
    audit.record(actor=actor, action="model.deleted", target=model, project_id=model.project_id)
    with refuse_if_in_use("model"):
        model.delete()


@transaction.atomic
def delete_corpus(*, actor: Any, corpus: Corpus) -> None:
    """Remove a corpus nothing was recorded on, and its uploaded file.

    Raises:
        Refused: ``in_use`` or ``job_active``.
    """
    require(actor, Action.DELETE, corpus.project_id)
    jobs.refuse_while_active(corpus)
    audit.record(actor=actor, action="corpus.deleted", target=corpus, project_id=corpus.project_id)
    owned = [*files_about(corpus.pk), corpus.artifact_id]
    with refuse_if_in_use("corpus"):
        corpus.delete()
    delete_files(owned)


@transaction.atomic
def delete_recording(*, actor: Any, recording: Recording) -> None:
    """Remove a recording no SAE was trained on, and its files.

    Raises:
        Refused: ``in_use`` or ``job_active``.
    """
    require(actor, Action.DELETE, recording.project_id)
    jobs.refuse_while_active(recording)
    audit.record(actor=actor, action="recording.deleted", target=recording, project_id=recording.project_id)
    owned = [*files_about(recording.pk), recording.artifact_id]
    with refuse_if_in_use("recording"):
        recording.delete()
    delete_files(owned)


def files_about(subject: UUID) -> set[UUID]:
    """What the jobs about something have made and still hold: forgets their uploads, returns their artifacts' ids."""
    about = Job.objects.about(subject)
    uploads.discard(list(Upload.objects.filter(used_by__in=about.values("pk"))))
    return {job.artifact_id for job in about.only("artifact_id") if job.artifact_id is not None}


def delete_files(owned: Iterable[UUID | None]) -> None:
    """Delete artifacts whose owner is gone."""
    for artifact in Artifact.objects.filter(pk__in=[pk for pk in owned if pk is not None]):
        artifacts.delete_artifact(artifact)
