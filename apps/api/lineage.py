"""The project as one picture: model → recording → SAE → evaluation, features, graphs → patches → exports."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, cast
from uuid import UUID

import msgspec

from apps.features.models import Analysis
from apps.graphs.models import Graph
from apps.jobs.models import Job
from apps.jobs.summary import JobSummary, summaries
from apps.patches.models import Adapter, Export, Patch
from apps.projects.models import Project
from apps.registry.models import Corpus, LanguageModel, Recording
from apps.saes.models import Evaluation, Sae
from microscope.params import EditPlan, ExportTarget
from microscope.params.targets import TITLES

NodeType = Literal[
    "model",
    "corpus",
    "recording",
    "sae",
    "evaluation",
    "analysis",
    "adapter",
    "graph",
    "patch",
    "export",
]
Numbers = dict[str, float | int | str | bool | None]


class LineageNode(msgspec.Struct, kw_only=True, frozen=True):
    """One box. ``numbers`` are its headline figures; ``job`` is the newest job about it, if any."""

    id: UUID
    type: NodeType
    name: str
    state: str
    numbers: Numbers
    job: JobSummary | None = None


class LineageEdge(msgspec.Struct, kw_only=True, frozen=True):
    """What was made from what."""

    source: UUID
    target: UUID


class Lineage(msgspec.Struct, kw_only=True, frozen=True):
    """The whole picture."""

    project: UUID
    nodes: list[LineageNode]
    edges: list[LineageEdge]


def lineage(project: Project) -> Lineage:
    """The picture of a project, in a number of queries that does not depend on its size."""
    # Only the newest job of a box is shown, and a project has many more.
    newest = dict(Job.objects.filter(project=project).order_by("pk").values_list("subject_id", "pk"))
    shown = Job.objects.filter(pk__in=newest.values()).for_display()
    jobs = {summary.subject_id: summary for summary in summaries(shown)}
    nodes: list[LineageNode] = []
    edges: list[LineageEdge] = []
    for node, parents in _boxes(project):
        nodes.append(msgspec.structs.replace(node, job=jobs.get(node.id)))
        edges += [LineageEdge(source=parent, target=node.id) for parent in parents]
    return Lineage(project=project.pk, nodes=nodes, edges=edges)


def _boxes(project: Project) -> Iterator[tuple[LineageNode, Iterable[UUID]]]:
    for model in LanguageModel.objects.filter(project=project).select_related("resident"):
        resident = getattr(model, "resident", None)
        numbers = {name: model.facts.get(name) for name in ("n_layers", "d_model", "parameters")}
        loaded = resident.state if resident is not None else "stopped"
        yield _node(model, "model", model.name, model.state, {**numbers, "resident": loaded}), ()
    for corpus in Corpus.objects.filter(project=project).only("name", "state", "bytes", "documents", "kind"):
        numbers = {"bytes": corpus.bytes, "documents": corpus.documents, "kind": corpus.kind}
        yield _node(corpus, "corpus", corpus.name, corpus.state, numbers), ()
    for recording in (
        Recording.objects.filter(project=project).select_related("artifact").prefetch_related("parts")
    ):
        numbers = {
            "tokens": recording.tokens,
            "layers": ", ".join(map(str, recording.layers)),
            "tokens_per_second": recording.summary.get("tokens_per_second"),
            "bytes": recording.artifact.bytes if recording.artifact is not None else None,
        }
        texts = {part.corpus_id for part in recording.parts.all()} | {recording.corpus_id}
        parents = (recording.model_id, *sorted(text for text in texts if text is not None))
        yield _node(recording, "recording", recording.name, recording.state, numbers), parents
    made_of: dict[str, UUID] = {}
    columns = ("fingerprint", "name", "state", "layer", "width", "k", "architecture", "recording", "model")
    for sae in Sae.objects.filter(project=project).only(*columns):
        made_of[sae.fingerprint] = sae.pk
        numbers = {"layer": sae.layer, "width": sae.width, "k": sae.k, "architecture": sae.architecture}
        yield _node(sae, "sae", sae.name, sae.state, numbers), (sae.recording_id or sae.model_id,)
    for adapter in Adapter.objects.filter(project=project):
        made_of[adapter.fingerprint] = adapter.pk
        numbers = {"rank": adapter.summary.get("rank"), "parameters": adapter.summary.get("parameters")}
        yield _node(adapter, "adapter", adapter.name, adapter.state, numbers), (adapter.model_id,)
    yield from _measurements(project)
    for patch in Patch.objects.filter(project=project):
        plan = msgspec.convert(patch.plan, type=EditPlan)
        used = {made_of[name] for name in plan.saes() | plan.adapters() if name in made_of}
        numbers = {"edits": len(plan.edits), "enabled": patch.enabled, "version": patch.version}
        state = "ready" if patch.enabled else "off"
        yield _node(patch, "patch", patch.name, state, numbers), sorted(used) or (patch.model_id,)
    yield from _graphs(project, made_of)
    yield from _exports(project)


def _graphs(project: Project, made_of: dict[str, UUID]) -> Iterator[tuple[LineageNode, Iterable[UUID]]]:
    """Graphs below the SAEs whose features they name."""
    shown = ("name", "state", "model", "saes", "depth", "verified", "edges")
    for graph in Graph.objects.filter(project=project).only(*shown):
        used = {made_of[name] for name in graph.saes if name in made_of}
        numbers: Numbers = {"depth": graph.depth, "verified": graph.verified, "edges": graph.edges}
        of_model = [graph.model_id] if graph.model_id is not None else []
        yield _node(graph, "graph", graph.name, graph.state, numbers), sorted(used) or of_model


def _exports(project: Project) -> Iterator[tuple[LineageNode, Iterable[UUID]]]:
    """The newest export of each patch for each target."""
    newest = {
        (export.patch_id, export.target): export
        for export in Export.objects.filter(project=project).order_by("pk")
    }
    for export in newest.values():
        numbers: Numbers = {
            "patch": str(export.patch_id),
            "version": export.patch_version,
            "grade": export.grade,
            "gate": export.gate,
        }
        title = TITLES[cast(ExportTarget, export.target)]
        yield _node(export, "export", title, export.state, numbers), (export.patch_id,)


def _measurements(project: Project) -> Iterator[tuple[LineageNode, Iterable[UUID]]]:
    newest: dict[UUID, Evaluation] = {}
    measured = Evaluation.objects.filter(sae__project=project).select_related("sae").order_by("pk")
    for evaluation in measured.only("metrics", "goals", "sae__name"):
        newest[evaluation.sae_id] = evaluation
    for evaluation in newest.values():
        metrics = evaluation.metrics
        numbers: Numbers = {
            name: metrics.get(name) for name in ("fvu", "l0", "dead_in_training", "ce_recovered")
        }
        numbers["goals_passed"] = sum(goal.get("passed") is True for goal in evaluation.goals)
        numbers["goals"] = len(evaluation.goals)
        yield _node(evaluation, "evaluation", evaluation.sae.name, "ready", numbers), (evaluation.sae_id,)
    analysed = Analysis.objects.filter(sae__project=project).select_related("sae")
    for analysis in analysed.only("n_features", "dead", "tokens", "sae__name"):
        numbers = {"features": analysis.n_features, "dead": analysis.dead, "tokens": analysis.tokens}
        yield _node(analysis, "analysis", analysis.sae.name, "ready", numbers), (analysis.sae_id,)


def _node(row: Any, kind: NodeType, name: str, state: str, numbers: Numbers) -> LineageNode:
    return LineageNode(id=row.pk, type=kind, name=name, state=state, numbers=numbers)
