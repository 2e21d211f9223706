"""Making projects and managing their members."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.db import IntegrityError, transaction
from django.utils.text import slugify

from apps.accounts.models import User
from apps.accounts.services import find_user
from apps.audit import services as audit
from apps.core.errors import Forbidden, NotVisible, Refused
from apps.core.etags import lock_unchanged
from apps.core.publish import publish_on_commit, user_group
from apps.projects.models import Membership, Project, Role
from apps.projects.policies import Action, require


def create_project(*, actor: User, name: str, slug: str = "", description: str = "") -> Project:
    """A new project with the actor as its owner.

    Raises:
        Refused: ``slug_taken`` when a slug was asked for that is in use.
        Forbidden: the actor came with an API token bound to another project.
    """
    if actor.token is not None and actor.token.project_id is not None:
        raise Forbidden(
            "The API token is bound to a project.", "Use one that is not.", code="token_bound_to_project"
        )
    wanted = slug or slugify(name)[:70] or "project"
    for number in range(1, 1000):
        candidate = wanted if number == 1 else f"{wanted}-{number}"
        if Project.objects.filter(slug=candidate).exists():
            if slug:
                raise Refused("slug_taken", f"There is a project '{slug}' already.", status=400, attr="slug")
            continue
        try:
            with transaction.atomic():
                project = Project.objects.create(
                    name=name, slug=candidate, description=description, created_by=actor
                )
                Membership.objects.create(project=project, user=actor, role=Role.OWNER)
                audit.record(actor=actor, action="project.created", target=project, project_id=project.pk)
                return project
        except IntegrityError:
            continue  # somebody took the slug between the look and the insert
    raise Refused("slug_taken", f"No free address was found for '{wanted}'.", "Choose a slug.", attr="slug")


@transaction.atomic
def update_project(
    *, actor: User, project: Project, changes: dict[str, Any], made_from: str | None = None
) -> Project:
    """Rename or describe the project.

    Args:
        made_from: the ETag the changes were made from.

    Raises:
        Conflict: somebody changed it since.
    """
    require(actor, Action.MANAGE, project)
    project = lock_unchanged(project, made_from)
    before = {name: getattr(project, name) for name in changes}
    for name, value in changes.items():
        setattr(project, name, value)
    project.save(update_fields=list(changes))
    audit.record(
        actor=actor,
        action="project.changed",
        target=project,
        project_id=project.pk,
        data={"before": before, "after": changes},
    )
    return project


@transaction.atomic
def add_member(*, actor: User, project: Project, name: str, role: str) -> Membership:
    """Give somebody a role.

    Args:
        name: user name. People are asked by e-mail address with an invitation, which tells nobody whose it is.

    Raises:
        Refused: ``unknown_user`` or ``already_member``.
    """
    require(actor, Action.MANAGE, project)
    user = find_user(name)
    if user is None:
        raise Refused(
            "unknown_user",
            f"Nobody here is called '{name}'.",
            "Give a user name; to ask somebody by e-mail address, invite them.",
            status=400,
            attr="user",
        )
    membership, created = Membership.objects.get_or_create(
        project=project, user=user, defaults={"role": role}
    )
    if not created:
        raise Refused(
            "already_member", f"{user} is a member already.", "Change their role instead.", status=409
        )
    audit.record(
        actor=actor, action="member.added", target=membership, project_id=project.pk, data={"role": role}
    )
    return membership


@transaction.atomic
def change_role(*, actor: User, membership: Membership, role: str) -> Membership:
    """Give a member another role; the last owner keeps theirs."""
    require(actor, Action.MANAGE, membership.project_id)
    before = membership.role
    if before == Role.OWNER and role != Role.OWNER:
        _keep_an_owner(membership)
    membership.role = role
    membership.save(update_fields=["role"])
    audit.record(
        actor=actor,
        action="member.changed",
        target=membership,
        project_id=membership.project_id,
        data={"before": before, "after": role},
    )
    _access_changed(membership)
    return membership


@transaction.atomic
def remove_member(*, actor: User, membership: Membership) -> None:
    """Take a role away. Members may leave by themselves; the last owner cannot.

    Raises:
        Forbidden: the actor may not, or their API token was not made for it.
        Refused: ``last_owner``.
    """
    own = membership.user_id == actor.pk
    require(actor, Action.LEAVE if own else Action.MANAGE, membership.project_id)
    if membership.role == Role.OWNER:
        _keep_an_owner(membership)
    audit.record(
        actor=actor,
        action="member.removed",
        target=membership,
        project_id=membership.project_id,
        data={"role": membership.role},
    )
    _access_changed(membership)
    membership.delete()


@transaction.atomic
def transfer(*, actor: User, project: Project, user_id: UUID) -> Membership:
    """Make another member owner in the actor's place; the actor stays as editor.

    Raises:
        NotVisible: that person is no member.
        Refused: ``not_owner`` (staff who are no owner change roles instead) or ``already_owner``.
    """
    require(actor, Action.MANAGE, project)
    mine = Membership.objects.select_for_update().filter(project=project, user=actor, role=Role.OWNER).first()
    if mine is None:
        raise Refused(
            "not_owner", "You are no owner of this project.", "Change the role instead.", status=409
        )
    heir = membership_of(project=project, user_id=user_id)
    if heir.role == Role.OWNER:
        raise Refused("already_owner", f"{heir.user} is an owner already.", status=409)
    heir.role, mine.role = Role.OWNER, Role.EDITOR
    heir.save(update_fields=["role"])
    mine.save(update_fields=["role"])
    audit.record(
        actor=actor,
        action="project.transferred",
        target=project,
        project_id=project.pk,
        data={"from": str(actor.pk), "to": str(user_id)},
    )
    _access_changed(heir)
    _access_changed(mine)
    return heir


def membership_of(*, project: Project, user_id: UUID) -> Membership:
    """The membership of one person.

    Raises:
        NotVisible: they are no member.
    """
    membership = Membership.objects.select_related("user").filter(project=project, user_id=user_id).first()
    if membership is None:
        raise NotVisible
    return membership


def _keep_an_owner(membership: Membership) -> None:
    # Locked, so that two owners cannot leave at the same moment; SQLite's transaction is exclusive anyway.
    owners = Membership.objects.select_for_update().filter(project_id=membership.project_id, role=Role.OWNER)
    if not [owner for owner in owners if owner.pk != membership.pk]:
        raise Refused(
            "last_owner", "A project needs an owner.", "Make somebody else owner first.", status=409
        )


def _access_changed(membership: Membership) -> None:
    publish_on_commit(
        user_group(membership.user_id), {"type": "access.changed", "project": str(membership.project_id)}
    )
