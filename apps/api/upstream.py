"""SAEs below a target in one request: three blocks recorded in one pass, an SAE trained and analysed on each."""

from __future__ import annotations

import itertools
from typing import Any
from uuid import UUID

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.api.pipelines import pipeline_once
from apps.core.errors import Refused
from apps.core.idempotency import gone
from apps.core.views import IDEMPOTENT, VisibleField, idempotency_key
from apps.features.services import start_analysis
from apps.jobs.models import Pipeline
from apps.jobs.serializers import PipelineSerializer
from apps.projects.policies import Action, require
from apps.registry.models import Corpus, LanguageModel, Recording, ResultState
from apps.registry.readiness import model_not_ready
from apps.registry.services import start_recording
from apps.saes.models import Sae
from apps.saes.services import start_training
from microscope.params.provenance import upstream_layers

# What of an SAE's training carries over to those below it.
_KEPT = ("arch", "width", "k", "tokens", "batch_size", "lr", "seed")


class UpstreamSerializer(serializers.Serializer[Any]):
    """Where the target is: at an ``sae``, or behind block ``layer`` of a ``model``, the last one if none is given.

    What is not given is taken from the SAE and its recording, or from the newest recording of the model.
    """

    sae = VisibleField(Sae, required=False)
    model = VisibleField(LanguageModel, required=False)
    layer = serializers.IntegerField(required=False, min_value=0)
    corpus = VisibleField(Corpus, required=False, default=None, allow_null=True)
    name = serializers.CharField(max_length=80, required=False, allow_blank=True, default="")
    trace = serializers.DictField(required=False, default=dict, help_text="Parameters of recording.")
    train = serializers.DictField(required=False, default=dict, help_text="Parameters of training.")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Either an SAE, or a model."""
        if ("sae" in attrs) == ("model" in attrs):
            raise serializers.ValidationError({"sae": "Give an SAE, or a model, perhaps with a layer."})
        return attrs


class UpstreamStartedSerializer(serializers.Serializer[Any]):
    """The pipeline, the blocks, the recording of all of them, and the SAEs to come, lowest first."""

    pipeline = PipelineSerializer()
    layers = serializers.ListField(child=serializers.IntegerField())
    recording = serializers.UUIDField()
    saes = serializers.ListField(child=serializers.UUIDField())


def start_upstream(
    *,
    actor: Any,
    sae: Sae | None = None,
    model: LanguageModel | None = None,
    layer: int | None = None,
    corpus: Corpus | None = None,
    name: str = "",
    trace: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    idempotency_key: str = "",
) -> Pipeline:
    """Submit all jobs, or none of them when one is refused.

    Raises:
        Refused: ``nothing_below``, ``no_text``, ``model_not_ready``, or what submitting the jobs one by one raises.
        MicroscopeError: as they.
    """
    of = model if sae is None else sae.model
    assert of is not None
    require(actor, Action.RUN_JOBS, of.project_id)
    if of.state != ResultState.READY or of.n_layers is None:
        raise model_not_ready(of)
    last = of.n_layers - 1
    top = min(sae.layer if sae is not None else last if layer is None else layer, last)
    layers = upstream_layers(top)
    if not layers:
        raise Refused("nothing_below", f"No block lies below block {top}.", "Choose a higher one.")
    source = _source(of, sae)
    parts = [(corpus, 1.0)] if corpus is not None else source.texts() if source is not None else []
    if not parts:
        raise Refused(
            "no_text",
            f"Nothing was recorded of {of.name} yet, so no text is known.",
            "Name one.",
            attr="corpus",
        )
    title = name or _free_name(of, f"Below block {top}")
    recorded = {**_recorded(source), **(trace or {}), "layers": list(layers), "site": ["resid_post"]}
    trained = {**_trained(sae), **(train or {})}

    def make(pipeline: Pipeline) -> None:
        recording, before = start_recording(
            actor=actor, model=of, parts=parts, name=title, params=recorded, pipeline=pipeline
        )
        for block in layers:
            made, job = start_training(
                actor=actor,
                recording=recording,
                name=f"{title}, SAE {block}",
                params={**trained, "layer": block},
                after=before,
                pipeline=pipeline,
            )
            start_analysis(actor=actor, sae=made, params={}, after=job, pipeline=pipeline)

    return pipeline_once(
        actor=actor, project=of.project, name=title, idempotency_key=idempotency_key, make=make
    )


def _free_name(model: LanguageModel, wanted: str) -> str:
    """A name that no recording of the project has yet: the same may be asked for again."""
    taken = set(Recording.objects.filter(project=model.project_id).values_list("name", flat=True))
    numbered = (f"{wanted} ({number})" for number in itertools.count(2))
    return next(title for title in itertools.chain([wanted], numbered) if title not in taken)


def _source(model: LanguageModel, sae: Sae | None) -> Recording | None:
    """The recording whose text and numbers are used again."""
    if sae is not None and sae.recording is not None:
        return sae.recording
    ready = Recording.objects.filter(model=model, state=ResultState.READY)
    return ready.select_related("corpus", "job").order_by("-pk").first()


def _recorded(source: Recording | None) -> dict[str, Any]:
    """How that was recorded; one that was brought in says only how much."""
    if source is None:
        return {}
    if source.job is None or source.job.kind != "trace":
        return {"tokens": source.tokens}
    return dict(source.job.params)


def _trained(sae: Sae | None) -> dict[str, Any]:
    """How the SAE was trained, if it was trained here as one that reads and writes one site."""
    params = {} if sae is None or sae.params.get("site_out") is not None else sae.params
    return {name: params[name] for name in _KEPT if name in params and "arch" in params}


class UpstreamView(APIView):
    """Starts what makes SAEs below a target."""

    @extend_schema(
        operation_id="graphs_upstream",
        request=UpstreamSerializer,
        responses={202: UpstreamStartedSerializer},
        parameters=IDEMPOTENT,
    )
    def post(self, request: Request) -> Response:
        """Record up to three blocks below a target in one pass, and train and analyse an SAE on each."""
        data = UpstreamSerializer(data=request.data, context={"request": request})
        data.is_valid(raise_exception=True)
        pipeline = start_upstream(
            actor=request.user, idempotency_key=idempotency_key(request), **data.validated_data
        )
        answer = UpstreamStartedSerializer(_told(pipeline))
        return Response(answer.data, status=status.HTTP_202_ACCEPTED)


def _told(pipeline: Pipeline) -> dict[str, Any]:
    jobs = pipeline.jobs.order_by("pk").values_list("kind", "subject_id")
    made: dict[str, list[UUID]] = {"trace": [], "train": []}
    for kind, subject in jobs:
        made.setdefault(kind, []).append(subject)
    recording = Recording.objects.filter(pk__in=made["trace"]).first()
    if recording is None:
        raise gone()
    return {
        "pipeline": Pipeline.objects.for_display().get(pk=pipeline.pk),
        "layers": recording.layers,
        "recording": recording.pk,
        "saes": made["train"],
    }
