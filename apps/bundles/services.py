"""Taking a project out, and bringing one in."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from apps.artifacts import uploads
from apps.audit import services as audit
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.projects.policies import Action, require
from apps.projects.services import create_project


def start_export(*, actor: Any, project: Project, params: dict[str, Any], idempotency_key: str = "") -> Job:
    """Pack a project; the job's artifact is what to download.

    Raises:
        MicroscopeError: ``bad_parameters``.
    """
    require(actor, Action.DOWNLOAD, project)

    def make() -> Job:
        job = jobs.submit(
            actor=actor,
            project=project,
            kind="export_project",
            title=f"Export {project.name}",
            subject=project,
            params=params,
            idempotency_key=idempotency_key,
        )
        audit.record(actor=actor, action="project.export_started", target=project, project_id=project.pk)
        return job

    return jobs.submit_once(
        actor=actor,
        kind="export_project",
        idempotency_key=idempotency_key,
        make=make,
        results=Project,
        project_id=project.pk,
    )


def start_import(
    *, actor: Any, name: str, upload_ids: list[UUID], idempotency_key: str = ""
) -> tuple[Project, Job]:
    """A new project of the actor, which a job fills from an uploaded bundle.

    Raises:
        Refused: what :func:`apps.artifacts.uploads.take` raises.
        Forbidden: the actor came with an API token bound to another project.
    """

    def make() -> Job:
        project = create_project(actor=actor, name=name)
        job = jobs.submit(
            actor=actor,
            project=project,
            kind="import_project",
            title=f"Import {name}",
            subject=project,
            params={},
            idempotency_key=idempotency_key,
        )
        uploads.take(actor=actor, ids=upload_ids, project_id=project.pk, used_by=job.pk)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="import_project",
        idempotency_key=idempotency_key,
        make=make,
        results=Project,
    )
    return Project.objects.visible_to(actor).with_role(actor).get(pk=job.project_id), job
