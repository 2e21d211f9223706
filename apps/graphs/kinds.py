"""The job whose result lives here: explaining a target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from apps.artifacts.models import Artifact
from apps.core.errors import Refused
from apps.graphs.documents import DOCUMENT, columns_of, read_file
from apps.graphs.models import Graph
from apps.graphs.targets import saes_of, take_target
from apps.jobs.kinds import OUT, CloneRequest, JobKind, engine
from apps.jobs.models import Job
from apps.registry.kinds import model_params
from apps.registry.models import LanguageModel, ResultState
from microscope.graphs import GraphTarget
from microscope.params import ProvenanceParams


def _load(pk: Any) -> Graph:
    return Graph.objects.select_related("model__project").get(pk=pk)


def _prepare(job: Job, workdir: Path) -> dict[str, Any]:
    graph = _load(job.subject_id)
    model = graph.model
    if model is None:
        raise Refused("no_model", "The model of this graph is gone.")
    folders = [str(sae.artifact.checkout()) for sae in saes_of(graph) if sae.artifact is not None]
    config = {**job.params, **model_params(model), "sae_path": folders, "out": str(workdir / OUT / DOCUMENT)}
    if model.dtype != LanguageModel.Dtype.AUTO:
        config["dtype"] = model.dtype
    target = msgspec.convert(graph.target, type=GraphTarget)
    if target.kind == "direction":
        file = workdir / "direction.json"
        file.write_bytes(msgspec.json.encode(target.vector))
        config["direction"] = str(file)
    return config


def _digest(job: Job, result: dict[str, Any], out: Path) -> dict[str, Any]:
    return columns_of(read_file(out / DOCUMENT))


def _explained(job: Job, result: dict[str, Any], columns: dict[str, Any]) -> None:
    Graph.objects.filter(pk=job.subject_id).update(state=ResultState.READY, artifact=job.artifact, **columns)
    # The whole document is the artifact: a list of jobs shows its headline figures only.
    headline = {name: value for name, value in result.items() if not isinstance(value, list | dict)}
    Job.objects.filter(pk=job.pk).update(result=headline)


def _clone(request: CloneRequest) -> Job:
    """The same target, or another of the same graph's model and SAEs, under a new name."""
    from apps.graphs.services import start_graph

    graph = _load(request.job.subject_id)
    if graph.model is None:
        raise Refused("no_model", "The model of this graph is gone.", status=409)
    params, saes = dict(request.params), saes_of(graph)
    prompt = params.pop("prompt")
    target = take_target(msgspec.convert(graph.target, type=GraphTarget), saes, params)
    _, job = start_graph(
        actor=request.actor,
        model=graph.model,
        name=request.name,
        prompt=prompt,
        target=target,
        saes=saes,
        params=params,
        idempotency_key=request.idempotency_key,
    )
    return job


PROVENANCE = JobKind(
    name="provenance",
    title="Explain where it comes from",
    params_type=ProvenanceParams,
    command=engine("provenance"),
    prepare=_prepare,
    digest=_digest,
    on_success=_explained,
    fills=Graph,
    artifact=Artifact.Kind.GRAPH,
    # A backward pass for every hop and parent, and forward passes for every edge that is measured.
    work=lambda params: params["hops"] * params["parents"] + params["verify"] * params["shown"],
    clone=_clone,
    named=True,
    hub=True,
)

KINDS = (PROVENANCE,)
