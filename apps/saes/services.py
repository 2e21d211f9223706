"""Training, evaluating and deleting SAEs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django.core.exceptions import ObjectDoesNotExist
from django.db import transaction

from apps.artifacts import uploads
from apps.audit import services as audit
from apps.core.errors import Refused, refuse_if_in_use, refuse_taken_name, unknown_reference
from apps.jobs import services as jobs
from apps.jobs.models import Job, Pipeline
from apps.projects.policies import Action, require
from apps.registry.models import LanguageModel, Recording, ResultState
from apps.registry.readiness import recording_not_ready
from apps.registry.services import delete_files, files_about
from apps.saes.models import Sae
from apps.saes.readiness import sae_not_ready

# Parameters of training that may have several values, and how names show them.
_VARIED = {"width": "w", "k": "k", "seed": "s"}
_MOST_AT_ONCE = 32


def start_trainings(
    *, actor: Any, recording: Recording, name: str, params: dict[str, Any], idempotency_key: str = ""
) -> list[tuple[Sae, Job]]:
    """Train an SAE for every combination of several widths, k and seeds: a job each, all or none submitted.

    Each becomes the SAE it would be in one run of all of them, and can be cancelled and tried again alone.

    Raises:
        Refused: ``too_many_saes``, and what :func:`start_training` raises.
        MicroscopeError: as :func:`start_training`.
    """
    several = {
        key: list(params[key])
        for key in _VARIED
        if isinstance(params.get(key), list | tuple) and len(params[key]) > 1
    }
    combinations = [
        dict(zip(several, values, strict=True)) for values in itertools.product(*several.values())
    ]
    if len(combinations) > _MOST_AT_ONCE:
        raise Refused(
            "too_many_saes",
            f"These are {len(combinations)} SAEs; {_MOST_AT_ONCE} at once is the limit.",
            "Give fewer values of width, k and seed.",
            attr="params",
        )
    started = []
    with transaction.atomic():
        for number, chosen in enumerate(combinations):
            suffix = "".join(f" {_VARIED[key]}{value}" for key, value in chosen.items())
            key = f"{idempotency_key[:180]}:{number}" if idempotency_key and number else idempotency_key
            started.append(
                start_training(
                    actor=actor,
                    recording=recording,
                    name=name[: 120 - len(suffix)] + suffix,
                    params={**params, **chosen},
                    idempotency_key=key,
                )
            )
    return started


def start_training(
    *,
    actor: Any,
    recording: Recording,
    name: str,
    params: dict[str, Any],
    idempotency_key: str = "",
    after: Job | None = None,
    pipeline: Pipeline | None = None,
) -> tuple[Sae, Job]:
    """Train an SAE on one layer of a recording.

    Args:
        after: the job that makes the recording; training waits for it.
        pipeline: the chain of jobs this one is part of.

    Raises:
        Refused: ``recording_not_ready``, ``layer_not_recorded``, ``name_taken``, ``several_saes``.
        MicroscopeError: ``bad_parameters``, ``k_above_width`` and others of the parameters.
    """
    require(actor, Action.RUN_JOBS, recording.project_id)
    sae = Sae(
        project=recording.project,
        model_id=recording.model_id,
        recording=recording,
        name=name,
        created_by=actor,
    )

    def make() -> Job:
        if after is None and recording.state != ResultState.READY:
            raise recording_not_ready(recording)
        job = jobs.submit(
            actor=actor,
            project=recording.project,
            kind="train",
            title=f"Train {name}",
            subject=sae,
            params={"site": recording.sites[0], **params},
            idempotency_key=idempotency_key,
            after=after,
            pipeline=pipeline,
        )
        chosen = job.params
        if any(len(chosen[key]) > 1 for key in _VARIED):
            raise Refused(
                "several_saes",
                "This makes one SAE, and several were asked for.",
                "Give one width, k and seed.",
                attr="params",
            )
        wanted = [(chosen["site"], chosen["layer"])]
        if chosen["site_out"] is not None or chosen["layer_out"] is not None:
            layer_out = chosen["layer"] if chosen["layer_out"] is None else chosen["layer_out"]
            wanted.append((chosen["site_out"] or chosen["site"], layer_out))
        missing = [at for at in wanted if at[0] not in recording.sites or at[1] not in recording.layers]
        if missing:
            raise Refused(
                "layer_not_recorded",
                f"{missing[0][0]}.{missing[0][1]} is not in this recording.",
                f"It has {', '.join(recording.sites)} of blocks {', '.join(map(str, recording.layers))}.",
                attr="params",
            )
        sae.params, sae.job = chosen, job
        sae.architecture, sae.layer, sae.site = chosen["arch"], chosen["layer"], chosen["site"]
        sae.width, sae.k = chosen["width"][0], chosen["k"][0]
        with refuse_taken_name(name, "SAE"):
            sae.save(force_insert=True)
        return job

    # The job is made first because it checks the parameters the row repeats.
    job = jobs.submit_once(
        actor=actor,
        kind="train",
        idempotency_key=idempotency_key,
        make=make,
        results=Sae,
        project_id=recording.project_id,
    )
    return Sae.objects.for_display().get(pk=job.subject_id), job


def start_sae_job(
    *,
    actor: Any,
    sae: Sae,
    kind: str,
    title: str,
    params: dict[str, Any],
    recording: Recording | None = None,
    idempotency_key: str = "",
    after: Job | None = None,
    pipeline: Pipeline | None = None,
) -> Job:
    """Queue a job that reads a finished SAE.

    Args:
        recording: what to measure an imported SAE on; it becomes the SAE's own.
        after: the job that trains the SAE; this one waits for it.
        pipeline: the chain of jobs this one is part of.

    Raises:
        Refused: ``sae_not_ready``, ``recording_fixed`` or what :func:`check_recording` raises.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, sae.project_id)

    def make() -> Job:
        if after is None and sae.state != ResultState.READY:
            raise sae_not_ready(sae)
        if recording is not None:
            _measure_on(sae, recording)
        return jobs.submit(
            actor=actor,
            project=sae.project,
            kind=kind,
            title=f"{title} {sae.name}",
            subject=sae,
            params=params,
            idempotency_key=idempotency_key,
            after=after,
            pipeline=pipeline,
        )

    return jobs.submit_once(
        actor=actor,
        kind=kind,
        idempotency_key=idempotency_key,
        make=make,
        results=Sae,
        project_id=sae.project_id,
        subject_id=sae.pk,
    )


def _measure_on(sae: Sae, recording: Recording) -> None:
    """Give an imported SAE the recording it is measured on."""
    if sae.recording_id == recording.pk:
        return
    if sae.recording_id is not None:
        raise Refused(
            "recording_fixed",
            f"The SAE belongs to the recording “{sae.recording}”.",
            "Leave the recording out.",
            status=409,
            attr="recording",
        )
    check_recording(recording, model_id=sae.model_id)
    if sae.layer not in recording.layers or sae.site not in recording.sites:
        raise Refused(
            "layer_not_recorded", f"{sae.site}.{sae.layer} is not in this recording.", attr="recording"
        )
    sae.recording = recording
    sae.save(update_fields=["recording"])


def check_recording(recording: Recording, *, model_id: UUID) -> None:
    """Whether an SAE of the model can be tested on the recording.

    Raises:
        Refused: ``does_not_exist`` for one of another model, or ``recording_not_ready``.
    """
    if recording.model_id != model_id:
        raise unknown_reference("recording")
    if recording.state != ResultState.READY:
        raise recording_not_ready(recording, "recording")


def import_sae(
    *,
    actor: Any,
    model: LanguageModel,
    name: str,
    files: Sequence[UUID],
    params: dict[str, Any],
    recording: Recording | None = None,
    idempotency_key: str = "",
) -> tuple[Sae, Job]:
    """Bring in an SAE from uploaded files: checked, read, tested on real activations, and kept natively.

    Args:
        files: finished uploads of the actor.
        recording: what to test it on; otherwise the model computes a short text.

    Raises:
        Refused: ``name_taken``, what :func:`check_recording` or :func:`apps.artifacts.uploads.take` raises.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, model.project_id)
    if recording is not None:
        check_recording(recording, model_id=model.pk)
    sae = Sae(
        project=model.project,
        model=model,
        recording=recording,
        name=name,
        created_by=actor,
        layer=0,
        width=0,
    )

    def make() -> Job:
        job = jobs.submit(
            actor=actor,
            project=model.project,
            kind="import_sae",
            title=f"Import {name}",
            subject=sae,
            params=params,
            idempotency_key=idempotency_key,
        )
        uploads.take(actor=actor, ids=files, project_id=model.project_id, used_by=job.pk)
        sae.params, sae.job = job.params, job
        with refuse_taken_name(name, "SAE"):
            sae.save(force_insert=True)
        audit.record(actor=actor, action="sae.import_started", target=sae, project_id=sae.project_id)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="import_sae",
        idempotency_key=idempotency_key,
        make=make,
        results=Sae,
        project_id=model.project_id,
    )
    return Sae.objects.for_display().get(pk=job.subject_id), job


def export_sae(*, actor: Any, sae: Sae, params: dict[str, Any], idempotency_key: str = "") -> Job:
    """Write an SAE for another library; the job's artifact is what to download.

    Raises:
        Refused: ``sae_not_ready``, or ``no_analysis`` when dashboards are asked for without one.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, sae.project_id)
    if params.get("format") == "neuronpedia" and not hasattr(sae, "analysis"):
        raise Refused(
            "no_analysis", "Dashboards are made from an analysis.", "Analyse the features first.", status=409
        )
    with transaction.atomic():
        job = start_sae_job(
            actor=actor,
            sae=sae,
            kind="export_sae",
            title="Export",
            params=params,
            idempotency_key=idempotency_key,
        )
        audit.record(
            actor=actor,
            action="sae.export_started",
            target=sae,
            project_id=sae.project_id,
            data={"format": job.params["format"]},
        )
    return job


def start_evaluation(
    *,
    actor: Any,
    sae: Sae,
    params: dict[str, Any],
    recording: Recording | None = None,
    idempotency_key: str = "",
    **chain: Any,
) -> Job:
    """Measure an SAE on the held-out part of its recording; ``chain`` as in :func:`start_sae_job`."""
    return start_sae_job(
        actor=actor,
        sae=sae,
        kind="evaluate",
        title="Evaluate",
        params=params,
        recording=recording,
        idempotency_key=idempotency_key,
        **chain,
    )


@transaction.atomic
def delete_sae(*, actor: Any, sae: Sae) -> None:
    """Remove an SAE with its evaluations, features and files. Patches that use it keep their plans.

    Raises:
        Refused: ``job_active``.
    """
    require(actor, Action.DELETE, sae.project_id)
    jobs.refuse_while_active(sae)
    audit.record(
        actor=actor,
        action="sae.deleted",
        target=sae,
        project_id=sae.project_id,
        data={"fingerprint": sae.fingerprint},
    )
    owned = [*files_about(sae.pk), sae.artifact_id, *sae.evaluations.values_list("artifact_id", flat=True)]
    with contextlib.suppress(ObjectDoesNotExist):
        owned.append(sae.analysis.artifact_id)
    with refuse_if_in_use("SAE"):
        sae.delete()
    delete_files(owned)
