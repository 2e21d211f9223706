"""Making, changing, switching and restoring patches. Every change is a version and an audit event."""

from __future__ import annotations

from typing import Any

import msgspec
from django.db import transaction

from apps.artifacts import services as artifacts
from apps.audit import services as audit
from apps.core.errors import NotVisible, refuse_if_in_use, refuse_taken_name
from apps.core.etags import lock_unchanged
from apps.jobs import services as jobs
from apps.patches.models import Certificate, Patch, PatchVersion
from apps.patches.plans import check_plan
from apps.projects.policies import Action, require
from apps.registry.models import LanguageModel
from microscope.params import EditPlan, plan_fingerprint


def stored_plan(patch: Patch | PatchVersion) -> EditPlan:
    """The plan as a struct; it was checked when it was stored."""
    return msgspec.convert(patch.plan, type=EditPlan)


@transaction.atomic
def create_patch(
    *,
    actor: Any,
    model: LanguageModel,
    name: str,
    plan: EditPlan,
    description: str = "",
    enabled: bool = True,
) -> Patch:
    """A new patch of a model.

    Raises:
        Refused: ``name_taken`` or what :func:`check_plan` raises.
    """
    require(actor, Action.EDIT, model.project_id)
    check_plan(plan, model)
    with refuse_taken_name(name, "patch"):
        patch = Patch.objects.create(
            project_id=model.project_id,
            model=model,
            name=name,
            description=description,
            plan=msgspec.to_builtins(plan),
            enabled=enabled,
            fingerprint=plan_fingerprint(plan),
            created_by=actor,
        )
    _keep_version(patch, actor, "created")
    return patch


@transaction.atomic
def update_patch(
    *,
    actor: Any,
    patch: Patch,
    changes: dict[str, Any],
    made_from: str | None = None,
    change: str = "changed",
) -> Patch:
    """Change name, description, plan or switch.

    Args:
        changes: new values; ``plan`` as an :class:`EditPlan`.
        made_from: the ETag the change was made from; another one by now refuses it.

    Raises:
        Conflict: somebody changed it since.
        Refused: ``name_taken`` or what :func:`check_plan` raises.
    """
    require(actor, Action.EDIT, patch.project_id)
    patch = lock_unchanged(patch, made_from)
    plan = changes.get("plan")
    if plan is not None:
        check_plan(plan, patch.model)
        patch.plan, patch.fingerprint = msgspec.to_builtins(plan), plan_fingerprint(plan)
    for name in ("name", "description", "enabled"):
        if name in changes:
            setattr(patch, name, changes[name])
    patch.version += 1
    with refuse_taken_name(patch.name, "patch"):
        patch.save()
    _keep_version(patch, actor, change)
    return patch


def toggle_patch(*, actor: Any, patch: Patch, enabled: bool) -> Patch:
    """Switch a patch on or off; nothing happens if it is as wanted."""
    require(actor, Action.EDIT, patch.project_id)
    if patch.enabled == enabled:
        return patch
    return update_patch(
        actor=actor, patch=patch, changes={"enabled": enabled}, change="enabled" if enabled else "disabled"
    )


def restore_version(*, actor: Any, patch: Patch, version: int) -> Patch:
    """Make an old version the newest one; the versions in between stay.

    Raises:
        NotVisible: there is no such version.
    """
    require(actor, Action.EDIT, patch.project_id)
    old = PatchVersion.objects.filter(patch=patch, version=version).first()
    if old is None:
        raise NotVisible(f"This patch has no version {version}")
    changes = {
        "name": old.name,
        "description": old.description,
        "enabled": old.enabled,
        "plan": stored_plan(old),
    }
    return update_patch(actor=actor, patch=patch, changes=changes, change=f"restored {version}")


@transaction.atomic
def delete_patch(*, actor: Any, patch: Patch) -> None:
    """Remove a patch with its exports; the audit log keeps its last plan.

    Raises:
        Refused: ``job_active`` or ``in_use``.
    """
    from apps.patches.exports import files_of

    require(actor, Action.DELETE, patch.project_id)
    made = list(patch.exports.all())
    for row in [*made, *Certificate.objects.filter(export__patch=patch)]:
        jobs.refuse_while_active(row)
    audit.record(
        actor=actor,
        action="patch.deleted",
        target=patch,
        project_id=patch.project_id,
        data={"plan": patch.plan, "version": patch.version},
    )
    owned = files_of(made)
    with refuse_if_in_use("patch"):
        patch.delete()
    for artifact in owned:
        artifacts.delete_artifact(artifact)


def _keep_version(patch: Patch, actor: Any, change: str) -> None:
    PatchVersion.objects.create(
        patch=patch,
        version=patch.version,
        name=patch.name,
        description=patch.description,
        plan=patch.plan,
        enabled=patch.enabled,
        fingerprint=patch.fingerprint,
        change=change,
        author=actor,
    )
    audit.record(
        actor=actor,
        action=f"patch.{change.split(' ', 1)[0]}",
        target=patch,
        project_id=patch.project_id,
        data={"version": patch.version, "fingerprint": patch.fingerprint, "enabled": patch.enabled},
    )
