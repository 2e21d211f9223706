"""The jobs whose results live here: looking at a model, recording activations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.artifacts.models import Artifact
from apps.core.hosts import file_elsewhere, this_host
from apps.jobs.kinds import OUT, CloneRequest, JobKind, engine_command
from apps.jobs.models import Job
from apps.registry.mixtures import text_place
from apps.registry.models import JobResult, LanguageModel, Recording, ResultState
from microscope.params import InspectParams, TraceParams


def model_place(model: LanguageModel) -> dict[str, Any]:
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
    place: dict[str, Any] = {"model": model.locate()}
    if model.revision:
        place["revision"] = model.revision
    return place


def rounded_model_place(model: LanguageModel) -> dict[str, Any]:
    """:func:`model_place`, with the precision when weights are rounded: that makes it another model."""
    place = model_place(model)
    return {**place, "dtype": model.dtype} if model.is_quantised else place


def set_state(rows: type[JobResult], state: ResultState) -> Callable[[Job], None]:
    """What brings the row a job fills in into a state."""

    def apply(job: Job) -> None:
        rows._default_manager.filter(pk=job.subject_id).update(state=state)

    return apply


# --- inspect ------------------------------------------------------------------------------------------


def _prepare_inspect(job: Job, workdir: Path) -> dict[str, Any]:
    return rounded_model_place(LanguageModel.objects.get(pk=job.subject_id))


def _inspected(job: Job, result: dict[str, Any], digest: Any) -> None:
    fingerprint = result.pop("fingerprint", "")
    known = {"fingerprint": fingerprint} if fingerprint else {}
    LanguageModel.objects.filter(pk=job.subject_id).update(state=ResultState.READY, facts=result, **known)


INSPECT_MODEL = JobKind(
    name="inspect_model",
    title="Look at a model",
    params_type=InspectParams,
    command=lambda: engine_command("inspect"),
    prepare=_prepare_inspect,
    on_success=_inspected,
    on_failure=set_state(LanguageModel, ResultState.FAILED),
    on_retry=set_state(LanguageModel, ResultState.PENDING),
    takes_in=True,
    hub=True,
)


# --- trace --------------------------------------------------------------------------------------------


def _prepare_trace(job: Job, workdir: Path) -> dict[str, Any]:
    recording = Recording.objects.select_related("model", "corpus__artifact").get(pk=job.subject_id)
    config = {**job.params, **model_place(recording.model), **text_place(recording)}
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
    command=lambda: engine_command("trace"),
    prepare=_prepare_trace,
    on_success=_traced,
    on_failure=set_state(Recording, ResultState.FAILED),
    on_retry=set_state(Recording, ResultState.PENDING),
    artifact=Artifact.Kind.RECORDING,
    # Every token passes every block up to the highest that is recorded.
    work=lambda params: params["tokens"] * (1 + max(params["layers"])),
    clone=_clone_trace,
    named=True,
    hub=True,
)
