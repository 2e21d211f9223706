"""Inviting people who may not have an account yet."""

from __future__ import annotations

import secrets
from typing import Any

import structlog
from django.conf import settings
from django.core.mail import send_mail
from django.db import IntegrityError, transaction

from apps.accounts.models import User
from apps.accounts.secrets import as_mailed, digest_of
from apps.accounts.services import has_address
from apps.audit import services as audit
from apps.core import clock
from apps.core.errors import Forbidden, NotVisible, Refused
from apps.core.publish import publish_on_commit, user_group
from apps.projects.models import Invitation, Membership, Project
from apps.projects.policies import Action, require

log = structlog.get_logger(__name__)

MAX_OPEN = 200


def link_of(text: str) -> str:
    """The address that is sent."""
    return f"{settings.WORKBENCH_PUBLIC_URL}/invitations/{text}"


@transaction.atomic
def invite(*, actor: Any, project: Project, email: str, role: str) -> tuple[Invitation, str]:
    """Offer a role and send the link by mail. An open invitation of the same address is replaced.

    The answer does not say whether the address has an account here: else inviting would be a way to find out.

    Returns:
        the invitation and its link, which nobody can see again. The one in the mail proves besides that it was read
        there; this one does not.

    Raises:
        Refused: ``too_many_invitations`` or ``already_invited``.
    """
    require(actor, Action.MANAGE, project)
    waiting = Invitation.objects.filter(project=project, state=Invitation.State.OPEN)
    waiting.filter(email__iexact=email).update(state=Invitation.State.REVOKED, settled_at=clock.now())
    if waiting.count() >= MAX_OPEN:
        raise Refused(
            "too_many_invitations", f"{MAX_OPEN} open invitations are the limit.", "Revoke some.", status=409
        )
    text = secrets.token_urlsafe(32)
    try:
        with transaction.atomic():
            invitation = Invitation.objects.create(
                project=project, email=email, role=role, digest=digest_of(text), created_by=actor
            )
    except IntegrityError as error:
        raise Refused("already_invited", f"{email} was invited just now.", status=409) from error
    audit.record(
        actor=actor,
        action="invitation.created",
        target=invitation,
        project_id=project.pk,
        data={"role": role},
    )
    mailed = link_of(as_mailed(text))
    transaction.on_commit(lambda: _send(invitation, mailed, actor), robust=True)
    return invitation, link_of(text)


def _send(invitation: Invitation, link: str, actor: Any) -> None:
    try:
        send_mail(
            f"{actor.get_username()} invites you to “{invitation.project.name}”",
            f"{actor.get_username()} offers you the role {invitation.role} in the project "
            f"“{invitation.project.name}” of InterpretabilityWorkbench.\n\n{link}\n\n"
            f"The link works until {invitation.expires_at:%Y-%m-%d %H:%M} UTC. If you did not expect this, ignore it.\n",
            None,
            [invitation.email],
        )
    except OSError as error:  # the link was shown to the one who invites, too
        log.error("invitation_mail_failed", invitation=str(invitation.pk), error=str(error))


@transaction.atomic
def revoke(*, actor: Any, invitation: Invitation) -> None:
    """Take an open invitation back.

    Raises:
        Refused: ``invitation_settled``.
    """
    require(actor, Action.MANAGE, invitation.project_id)
    _settle(actor, invitation, Invitation.State.REVOKED)


def by_link(text: str) -> Invitation:
    """The open invitation with that secret.

    Raises:
        NotVisible: it is unknown, over or settled; the answer is the same for all three.
    """
    invitation = Invitation.objects.find(text)
    if invitation is None:
        raise NotVisible("This invitation does not exist, or its time is over")
    return invitation


@transaction.atomic
def accept(*, actor: User, text: str) -> Membership:
    """Become a member.

    Raises:
        NotVisible: there is no such open invitation.
        Refused: ``other_address`` when the actor's account has another address than the invited one, or
            ``already_member``.
        Forbidden: the actor came with an API token.
    """
    if actor.token is not None:
        raise Forbidden("API tokens cannot do this.", "Sign in with a browser.", code="session_needed")
    invitation = by_link(text)
    if not has_address(actor, invitation.email):
        raise Refused(
            "other_address",
            "This invitation was sent to another address than that of your account.",
            "Sign in with the account of that address, or ask for an invitation to yours.",
            status=409,
        )
    membership, created = Membership.objects.get_or_create(
        project_id=invitation.project_id, user=actor, defaults={"role": invitation.role}
    )
    if not created:
        raise Refused("already_member", f"You are {membership.role} of this project already.", status=409)
    _settle(actor, invitation, Invitation.State.ACCEPTED, accepted_by=actor)
    publish_on_commit(user_group(actor.pk), {"type": "access.changed", "project": str(invitation.project_id)})
    return membership


@transaction.atomic
def decline(*, actor: User | None, text: str) -> None:
    """Refuse; the link alone is enough for that."""
    _settle(actor, by_link(text), Invitation.State.DECLINED)


def _settle(actor: Any, invitation: Invitation, state: str, **values: Any) -> None:
    rows = Invitation.objects.filter(pk=invitation.pk, state=Invitation.State.OPEN)
    if not rows.update(state=state, settled_at=clock.now(), **values):
        raise Refused("invitation_settled", "The invitation is settled already.", status=409)
    audit.record(
        actor=actor,
        action=f"invitation.{state}",
        target=invitation,
        project_id=invitation.project_id,
        data={"role": invitation.role},
    )
