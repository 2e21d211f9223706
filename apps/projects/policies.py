"""The one table of who may do what. The permission tests are generated from it, too."""

from __future__ import annotations

import enum
from typing import Any
from uuid import UUID

from apps.accounts.permissions import scope_missing
from apps.accounts.scopes import Scope
from apps.core.errors import Forbidden, NotVisible
from apps.projects.models import Membership, Project, Role


class Action(enum.StrEnum):
    """Everything a role can allow."""

    VIEW = "view"  # see the project and everything in it
    LEAVE = "leave"  # end one's own membership
    USE_LIVE = "use_live"  # open a live session, run an inference
    EDIT = "edit"  # add and change models, corpora, labels, patches
    RUN_JOBS = "run_jobs"  # start a job
    CONTROL_OWN_JOB = "control_own_job"  # cancel or retry a job one has started
    CONTROL_ANY_JOB = "control_any_job"  # … that somebody else has started
    LOAD_MODELS = "load_models"  # put a model into memory or take it out
    DOWNLOAD = "download"  # take files away
    DELETE = "delete"  # delete models, recordings, SAEs, patches
    OVERRIDE_GATES = "override_gates"  # give out an export whose certificate did not pass
    MANAGE = "manage"  # rename or delete the project, manage its members


_VIEWER = {Action.VIEW, Action.LEAVE, Action.USE_LIVE, Action.DOWNLOAD}
_EDITOR = _VIEWER | {Action.EDIT, Action.RUN_JOBS, Action.CONTROL_OWN_JOB, Action.LOAD_MODELS, Action.DELETE}
_OWNER = _EDITOR | {Action.CONTROL_ANY_JOB, Action.OVERRIDE_GATES, Action.MANAGE}

POLICY: dict[Role, frozenset[Action]] = {
    Role.VIEWER: frozenset(_VIEWER),
    Role.EDITOR: frozenset(_EDITOR),
    Role.OWNER: frozenset(_OWNER),
}

# What an API token must be made for, besides the role of its person.
SCOPES: dict[Action, Scope] = {
    Action.VIEW: Scope.READ,
    Action.LEAVE: Scope.ADMIN,
    Action.USE_LIVE: Scope.JOBS,
    Action.EDIT: Scope.WRITE,
    Action.RUN_JOBS: Scope.JOBS,
    Action.CONTROL_OWN_JOB: Scope.JOBS,
    Action.CONTROL_ANY_JOB: Scope.JOBS,
    Action.LOAD_MODELS: Scope.JOBS,
    Action.DOWNLOAD: Scope.ARTIFACTS,
    Action.DELETE: Scope.WRITE,
    Action.OVERRIDE_GATES: Scope.ADMIN,
    Action.MANAGE: Scope.ADMIN,
}


def role_of(user: Any, project: Project | UUID) -> Role | None:
    """The user's role in the project, or None."""
    project_id = project.pk if isinstance(project, Project) else project
    role = (
        Membership.objects.filter(project_id=project_id, user_id=user.pk)
        .values_list("role", flat=True)
        .first()
    )
    return Role(role) if role else None


def can(user: Any, action: Action, project: Project | UUID) -> bool:
    """Whether the user may do it. Staff may do everything."""
    try:
        require(user, action, project)
    except (NotVisible, Forbidden):
        return False
    return True


def require(user: Any, action: Action, project: Project | UUID) -> None:
    """Let the user pass or refuse.

    Raises:
        NotVisible: the user may not even see the project (404).
        Forbidden: they may see it, but not do this (403): their role or the scopes of their API token
            do not reach so far.
    """
    if not user.is_authenticated or not user.is_active:
        raise NotVisible
    token, project_id = user.token, project.pk if isinstance(project, Project) else project
    if token is not None and token.project_id not in (None, project_id):
        raise NotVisible
    if not user.sees_as_staff:
        role = role_of(user, project_id)
        if role is None:
            raise NotVisible
        if action not in POLICY[role]:
            raise Forbidden(f"Your role in this project is {role.value}.", _who_may(action))
    if token is not None and SCOPES[action] not in token.scopes:
        raise scope_missing(token, SCOPES[action])


def _who_may(action: Action) -> str:
    roles = [role.value for role, allowed in POLICY.items() if action in allowed]
    return f"Ask for the role {' or '.join(roles)}." if roles else "Ask an administrator."
