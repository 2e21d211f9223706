"""Computing, keeping, changing and deleting graphs, and talking about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from django.db import transaction

from apps.artifacts import services as artifacts
from apps.artifacts import uploads
from apps.artifacts.models import Upload
from apps.audit import services as audit
from apps.core.errors import Refused, refuse_taken_name, unknown_reference
from apps.core.etags import lock_unchanged
from apps.core.ids import uuid7
from apps.graphs import models
from apps.graphs.documents import Draft, columns_of
from apps.graphs.targets import check_target, target_params
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.projects.policies import Action, require
from apps.projects.quotas import lock_holders, require_room
from apps.registry.models import LanguageModel, ResultState
from apps.registry.readiness import model_not_ready
from apps.saes.models import Sae
from microscope.graphs import MAX_BYTES, Graph, GraphTarget, check, read_graph_file, summarise

MAX_VIEW_BYTES = 256 * 1024
MAX_COMMENTS = 1000


def start_graph(
    *,
    actor: Any,
    model: LanguageModel,
    name: str,
    prompt: str,
    target: GraphTarget,
    saes: Sequence[Sae],
    params: dict[str, Any],
    idempotency_key: str = "",
) -> tuple[models.Graph, Job]:
    """Queue the computation of a graph.

    Args:
        target: its ``sae`` is the id or the fingerprint of one of ``saes``.
        params: the other parameters of the job kind ``provenance``.

    Raises:
        Refused: ``model_not_ready``, ``name_taken``, or what :func:`check_target` raises.
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.RUN_JOBS, model.project_id)
    graph = models.Graph(
        project=model.project,
        model=model,
        name=name,
        source=models.Graph.Source.JOB,
        prompt=prompt,
        created_by=actor,
    )

    def make() -> Job:
        if model.state != ResultState.READY:
            raise model_not_ready(model)
        checked = check_target(target, saes, model)
        chosen = list({sae.fingerprint: sae for sae in saes}.values())  # the same weights are the same nodes
        job = jobs.submit(
            actor=actor,
            project=model.project,
            kind="provenance",
            title=f"Explain {name}",
            subject=graph,
            params={**params, "prompt": prompt, **target_params(checked, chosen)},
            idempotency_key=idempotency_key,
        )
        graph.job, graph.target = job, msgspec.to_builtins(checked)
        graph.saes = [sae.fingerprint for sae in chosen]
        with refuse_taken_name(name, "graph"):
            graph.save(force_insert=True)
        audit.record(actor=actor, action="graph.started", target=graph, project_id=graph.project_id)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="provenance",
        idempotency_key=idempotency_key,
        make=make,
        results=models.Graph,
        project_id=model.project_id,
    )
    return models.Graph.objects.for_display().get(pk=job.subject_id), job


def keep_graph(
    *,
    actor: Any,
    project: Project,
    model: LanguageModel | None,
    name: str,
    document: Graph,
    source: models.Graph.Source,
    view: dict[str, Any] | None = None,
) -> models.Graph:
    """Keep a document: one made in a live session, or one of a file. Its headline figures are made anew.

    Raises:
        Refused: ``name_taken``, ``another_model``, or ``does_not_exist`` for a model of another project.
        MicroscopeError: what :func:`microscope.graphs.check` raises.
        QuotaExceeded: the project or the person has no room for it.
    """
    require(actor, Action.EDIT, project)
    if model is not None and model.project_id != project.pk:
        raise unknown_reference("model")
    if model is not None and model.fingerprint and document.model_fingerprint not in ("", model.fingerprint):
        raise Refused(
            "another_model",
            f"The graph is of {document.model[:80]} with other weights than {model.name}.",
            "Choose the model it was made with.",
            attr="model",
        )
    check(document)
    document = msgspec.structs.replace(document, summary=summarise(document))
    encoded = msgspec.json.encode(document)
    with Draft(encoded) as draft, transaction.atomic():
        lock_holders(project.pk, actor.pk)
        require_room("storage_bytes", project_id=project.pk, user_id=actor.pk, asked=len(encoded))
        graph = models.Graph(
            project=project,
            model=model,
            name=name,
            source=source,
            state=ResultState.READY,
            created_by=actor,
            view=view or {},
            artifact=draft.keep(project.pk),
            **columns_of(document),
        )
        with refuse_taken_name(name, "graph"):
            graph.save(force_insert=True)
        audit.record(
            actor=actor,
            action="graph.kept",
            target=graph,
            project_id=project.pk,
            data={"source": source, "nodes": graph.nodes, "edges": graph.edges},
        )
    return models.Graph.objects.for_display().get(pk=graph.pk)


@transaction.atomic
def update_graph(
    *, actor: Any, graph: models.Graph, changes: dict[str, Any], made_from: str | None = None
) -> models.Graph:
    """Change name, note or what is arranged on the page.

    Args:
        made_from: the ETag the changes were made from.

    Raises:
        Conflict: somebody changed it since.
        Refused: ``name_taken`` or ``view_too_large``.
    """
    require(actor, Action.EDIT, graph.project_id)
    _check_view(changes.get("view", {}))
    graph = lock_unchanged(graph, made_from)
    for field, value in changes.items():
        setattr(graph, field, value)
    with refuse_taken_name(graph.name, "graph"):
        graph.save(update_fields=list(changes))
    if set(changes) - {"view"}:  # a slider that was moved is no news
        audit.record(
            actor=actor,
            action="graph.changed",
            target=graph,
            project_id=graph.project_id,
            data={"fields": sorted(changes)},
        )
    return graph


def _check_view(view: dict[str, Any]) -> None:
    size = len(msgspec.json.encode(view))
    if size > MAX_VIEW_BYTES:
        raise Refused(
            "view_too_large",
            f"The view has {size} bytes; {MAX_VIEW_BYTES} are the limit.",
            "Pin or group fewer nodes.",
            attr="view",
        )


@transaction.atomic
def delete_graph(*, actor: Any, graph: models.Graph) -> None:
    """Remove a graph with its file and its comments.

    Raises:
        Refused: ``job_active``.
    """
    require(actor, Action.DELETE, graph.project_id)
    jobs.refuse_while_active(graph)
    audit.record(
        actor=actor,
        action="graph.deleted",
        target=graph,
        project_id=graph.project_id,
        data={"target": {k: v for k, v in graph.target.items() if k != "vector"}},
    )
    artifact = graph.artifact
    graph.delete()
    if artifact is not None:
        artifacts.delete_artifact(artifact)


@transaction.atomic
def add_comment(*, actor: Any, graph: models.Graph, text: str) -> models.GraphComment:
    """Say something about a graph.

    Raises:
        Refused: ``too_many_comments``.
    """
    require(actor, Action.EDIT, graph.project_id)
    if graph.comments.count() >= MAX_COMMENTS:
        raise Refused(
            "too_many_comments", f"A graph has {MAX_COMMENTS} comments at most.", "Delete some first."
        )
    comment = models.GraphComment.objects.create(graph=graph, text=text, author=actor)
    audit.record(actor=actor, action="graph.commented", target=graph, project_id=graph.project_id)
    return comment


@transaction.atomic
def delete_comment(*, actor: Any, comment: models.GraphComment) -> None:
    """Take back a comment; the audit log keeps what it said."""
    project_id = comment.graph.project_id
    require(actor, Action.EDIT, project_id)
    audit.record(
        actor=actor,
        action="graph.comment_deleted",
        target=comment.graph,
        project_id=project_id,
        data={"text": comment.text, "author": comment.author.username if comment.author else ""},
    )
    comment.delete()


def import_graph(
    *,
    actor: Any,
    project: Project,
    model: LanguageModel | None,
    name: str,
    document: dict[str, Any] | None = None,
    upload: UUID | None = None,
) -> models.Graph:
    """Bring in the graph of a file with what was arranged in it: our own, or an attribution graph of others.

    Args:
        document: what is in the file, or None:
        upload: the file itself; it is removed once its graph is kept.

    Raises:
        Refused: what :func:`keep_graph` and :func:`apps.artifacts.uploads.take` raise, or ``view_too_large``.
        MicroscopeError: what :func:`microscope.graphs.read_graph_file` raises.
    """
    require(actor, Action.EDIT, project)
    file = read_graph_file(_content(actor, upload) if upload is not None else document or {})
    _check_view(file.view)
    with transaction.atomic():
        taken = [] if upload is None else _take(actor, upload, project)
        graph = keep_graph(
            actor=actor,
            project=project,
            model=model,
            name=name,
            document=file.graph,
            source=models.Graph.Source.FILE,
            view=file.view,
        )
        uploads.discard(taken)
    return graph


def _take(actor: Any, upload: UUID, project: Project) -> list[Upload]:
    return uploads.take(actor=actor, ids=[upload], project_id=project.pk, used_by=uuid7())


def _content(actor: Any, upload: UUID) -> bytes:
    """Bytes of a person's own upload; read before any transaction, no further than a graph may be long."""
    mine = Upload.objects.visible_to(actor).filter(pk=upload, created_by_id=actor.pk).first()
    if mine is None:
        raise unknown_reference("upload")
    uploads.require_own(actor, mine)
    try:
        with mine.local_path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise unknown_reference("upload") from error
