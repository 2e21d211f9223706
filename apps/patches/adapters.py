"""Bringing LoRA adapters in: uploaded files become an adapter and a patch that applies it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from django.db import transaction

from apps.artifacts import services as artifacts
from apps.artifacts import uploads
from apps.audit import services as audit
from apps.core.errors import Refused, refuse_taken_name
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.patches.models import Adapter, Patch
from apps.patches.services import create_patch
from apps.projects.policies import Action, require
from apps.registry.models import LanguageModel, ResultState
from apps.registry.readiness import model_not_ready
from microscope.params import EditPlan

WANTED = {"adapter_config.json", "adapter_model.safetensors"}


def start_import(
    *, actor: Any, model: LanguageModel, name: str, upload_ids: Sequence[UUID], idempotency_key: str = ""
) -> tuple[Adapter, Job]:
    """Check an uploaded adapter against a model, in a process of its own, and make a patch of it.

    Raises:
        Refused: ``model_not_ready``, ``wrong_files``, ``pickle_refused``, ``name_taken``, or what
            :func:`apps.artifacts.uploads.take` raises.
    """
    require(actor, Action.EDIT, model.project_id)
    require(actor, Action.RUN_JOBS, model.project_id)
    adapter = Adapter(project=model.project, model=model, name=name, created_by=actor)

    def make() -> Job:
        if model.state != ResultState.READY:
            raise model_not_ready(model)
        job = jobs.submit(
            actor=actor,
            project=model.project,
            kind="import_adapter",
            title=f"Import {name}",
            subject=adapter,
            params={},
            idempotency_key=idempotency_key,
        )
        rows = uploads.take(actor=actor, ids=upload_ids, project_id=model.project_id, used_by=job.pk)
        _check_names([upload.path.rsplit("/", 1)[-1] for upload in rows])
        adapter.job = job
        with refuse_taken_name(name, "adapter"):
            adapter.save(force_insert=True)
        return job

    job = jobs.submit_once(
        actor=actor,
        kind="import_adapter",
        idempotency_key=idempotency_key,
        make=make,
        results=Adapter,
        project_id=model.project_id,
    )
    return Adapter.objects.for_display().get(pk=job.subject_id), job


def _check_names(names: list[str]) -> None:
    if "adapter_model.bin" in names:
        raise Refused(
            "pickle_refused",
            "adapter_model.bin is a pickle, which can run code.",
            "Save the adapter again with safe_serialization=True.",
            attr="uploads",
        )
    if set(names) != WANTED:
        raise Refused(
            "wrong_files",
            f"The files are {', '.join(sorted(names))}.",
            f"Upload {' and '.join(sorted(WANTED))}, as PEFT saves them.",
            attr="uploads",
        )


def make_patch(*, adapter: Adapter, plan: EditPlan, now: datetime) -> Patch | None:
    """The patch of a finished import; its name gets the time when a patch is called like the adapter already."""
    taken = Patch.objects.filter(project_id=adapter.project_id, name=adapter.name).exists()
    name = f"{adapter.name[:100]} {now:%Y-%m-%d %H%M}" if taken else adapter.name
    if adapter.created_by is None:
        return None
    patch = create_patch(
        actor=adapter.created_by,
        model=adapter.model,
        name=name,
        plan=plan,
        description=f"Imported adapter {adapter.fingerprint[:12]}.",
        enabled=False,
    )
    Adapter.objects.filter(pk=adapter.pk).update(patch=patch)
    audit.record(
        actor=adapter.created_by,
        action="adapter.imported",
        target=adapter,
        project_id=adapter.project_id,
        data={"fingerprint": adapter.fingerprint, "patch": str(patch.pk)},
    )
    return patch


@transaction.atomic
def delete_adapter(*, actor: Any, adapter: Adapter) -> None:
    """Remove an adapter no patch names any more.

    Raises:
        Refused: ``in_use`` or ``job_active``.
    """
    require(actor, Action.DELETE, adapter.project_id)
    jobs.refuse_while_active(adapter)
    users = [
        patch.name
        for patch in Patch.objects.filter(model_id=adapter.model_id)
        if adapter.fingerprint and adapter.fingerprint in _named(patch)
    ]
    if users:
        raise Refused(
            "in_use", f"The adapter is used by the patch “{users[0]}”.", "Delete that first.", status=409
        )
    audit.record(
        actor=actor,
        action="adapter.deleted",
        target=adapter,
        project_id=adapter.project_id,
        data={"fingerprint": adapter.fingerprint},
    )
    artifact = adapter.artifact
    adapter.delete()
    if artifact is not None:
        artifacts.delete_artifact(artifact)


def _named(patch: Patch) -> set[str]:
    return {edit.get("adapter", "") for edit in patch.plan.get("edits", [])}
