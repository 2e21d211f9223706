"""The jobs that make bundles and projects of bundles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from django.core.serializers.json import DjangoJSONEncoder

from apps.artifacts.models import Artifact
from apps.audit import services as audit
from apps.bundles import restoring
from apps.bundles.document import listing_of
from apps.core.errors import Refused
from apps.jobs.kinds import OUT, JobKind, engine, never
from apps.jobs.models import Job
from apps.projects.models import Project
from apps.registry.kinds import laid_out, room_for
from microscope.params.bundles import PackParams, UnpackParams

_LISTING = "listing.json"


def _prepare_export(job: Job, workdir: Path) -> dict[str, Any]:
    listing = listing_of(Project.objects.get(pk=job.project_id), recordings=job.params["recordings"])
    shutil.rmtree(workdir / OUT, ignore_errors=True)
    file = workdir / _LISTING
    file.write_text(json.dumps(listing, cls=DjangoJSONEncoder))
    return {**job.params, "listing": str(file), "out": str(workdir / OUT)}


EXPORT_PROJECT = JobKind(
    name="export_project",
    title="Export a project",
    params_type=PackParams,
    command=engine("bundle", "pack"),
    prepare=_prepare_export,
    artifact=Artifact.Kind.BUNDLE,
    computes=never,
)


def _prepare_import(job: Job, workdir: Path) -> dict[str, Any]:
    folder, names = laid_out(job, workdir)
    if len(names) != 1:
        raise Refused(
            "one_archive", f"A bundle is one file, and {len(names)} were sent.", "Send one .zip file."
        )
    return {
        **job.params,
        "path": str(folder / names[0]),
        "out": str(workdir / OUT),
        "max_bytes": room_for(job),
    }


def _imported(job: Job, result: dict[str, Any], restored: restoring.Restored) -> None:
    restoring.insert(job, restored)
    Job.objects.filter(pk=job.pk).update(result={**result, "warnings": restored.warnings})
    audit.record(
        actor=job.created_by,
        action="project.imported",
        target=Project.objects.get(pk=job.project_id),
        project_id=job.project_id,
        data={"files": result["files"], "bytes": result["bytes"]},
    )


IMPORT_PROJECT = JobKind(
    name="import_project",
    title="Import a project",
    params_type=UnpackParams,
    command=engine("bundle", "unpack"),
    prepare=_prepare_import,
    digest=lambda job, result, out: restoring.read(job, out),
    on_success=_imported,
    takes_in=True,
    computes=never,
)


KINDS = (EXPORT_PROJECT, IMPORT_PROJECT)
