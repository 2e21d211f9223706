"""Projects and their members over REST."""

from __future__ import annotations

from typing import Any, ClassVar, cast
from uuid import UUID

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from apps.accounts.adapter import may_sign_up
from apps.accounts.models import User
from apps.accounts.permissions import TokenScopes
from apps.accounts.scopes import Scope
from apps.core.etags import IF_MATCH, if_match, with_etag
from apps.core.idempotency import answered_once
from apps.core.schema import ErrorResponseSerializer
from apps.core.views import IDEMPOTENT, VisibleViewSet, get_or_404
from apps.projects import invitations, quotas, services
from apps.projects.models import Invitation, Project
from apps.projects.policies import Action, require
from apps.projects.serializers import (
    InvitationCreateSerializer,
    InvitationLinkSerializer,
    InvitationOfferSerializer,
    InvitationSerializer,
    InvitationTextSerializer,
    MemberAddSerializer,
    MemberRoleSerializer,
    MemberSerializer,
    OwnUsageSerializer,
    ProjectSerializer,
    ProjectUpdateSerializer,
    TransferSerializer,
    UsageSerializer,
)


class ProjectViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, VisibleViewSet):
    """Projects the user is a member of; staff see all."""

    model = Project
    serializer_class = ProjectSerializer
    token_scopes: ClassVar[TokenScopes] = {"create": Scope.ADMIN}

    def get_queryset(self) -> QuerySet[Any]:
        """Visible projects with the user's role."""
        return super().get_queryset() if getattr(self, "swagger_fake_view", False) else self._with_role()

    def _with_role(self) -> QuerySet[Any]:
        return Project.objects.visible_to(self.request.user).with_role(self.request.user)

    @extend_schema(request=ProjectSerializer, responses={201: ProjectSerializer}, parameters=IDEMPOTENT)
    @answered_once
    def create(self, request: Request) -> Response:
        """Make a project and become its owner."""
        data = ProjectSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        project = services.create_project(actor=self.actor, **data.validated_data)
        shown = ProjectSerializer(self._with_role().get(pk=project.pk))
        return Response(shown.data, status=status.HTTP_201_CREATED)

    def retrieve(self, request: Request, pk: UUID) -> Response:
        """One project, with the ETag of its name and description."""
        project = self.get_object()
        return with_etag(project, ProjectSerializer(project).data)

    @extend_schema(request=ProjectUpdateSerializer, responses=ProjectSerializer, parameters=IF_MATCH)
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Rename or describe the project."""
        project = self.get_object()
        data = ProjectUpdateSerializer(project, data=request.data, partial=True)
        data.is_valid(raise_exception=True)
        services.update_project(
            actor=self.actor, project=project, changes=data.validated_data, made_from=if_match(request)
        )
        project = self.get_object()
        return with_etag(project, ProjectSerializer(project).data)

    @extend_schema(
        methods=["GET"], operation_id="projects_members_list", responses=MemberSerializer(many=True)
    )
    @extend_schema(
        methods=["POST"],
        operation_id="projects_members_add",
        request=MemberAddSerializer,
        responses={201: MemberSerializer},
    )
    @action(detail=True, methods=["get", "post"], pagination_class=None, filter_backends=[])
    def members(self, request: Request, pk: UUID) -> Response:
        """Who belongs to the project; add somebody by user name."""
        project = self.get_object()
        if request.method == "GET":
            rows = project.memberships.select_related("user")
            return Response(MemberSerializer(rows, many=True, context=self.get_serializer_context()).data)
        data = MemberAddSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        membership = services.add_member(
            actor=self.actor,
            project=project,
            name=data.validated_data["user"],
            role=data.validated_data["role"],
        )
        return Response(
            MemberSerializer(membership, context=self.get_serializer_context()).data,
            status=status.HTTP_201_CREATED,
        )

    @extend_schema(
        methods=["PATCH"],
        operation_id="projects_members_change",
        request=MemberRoleSerializer,
        responses=MemberSerializer,
    )
    @extend_schema(methods=["DELETE"], operation_id="projects_members_remove", responses={204: None})
    @action(detail=True, methods=["patch", "delete"], url_path="members/<uuid:user_id>", url_name="member")
    def member(self, request: Request, pk: UUID, user_id: UUID) -> Response:
        """Change a member's role or remove them."""
        membership = services.membership_of(project=self.get_object(), user_id=user_id)
        if request.method == "DELETE":
            services.remove_member(actor=self.actor, membership=membership)
            return Response(status=status.HTTP_204_NO_CONTENT)
        data = MemberRoleSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        services.change_role(actor=self.actor, membership=membership, role=data.validated_data["role"])
        return Response(MemberSerializer(membership, context=self.get_serializer_context()).data)

    @extend_schema(request=TransferSerializer, responses=MemberSerializer)
    @action(detail=True, methods=["post"])
    def transfer(self, request: Request, pk: UUID) -> Response:
        """Make another member owner in your place; you stay as editor."""
        data = TransferSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        heir = services.transfer(
            actor=self.actor, project=self.get_object(), user_id=data.validated_data["user"]
        )
        return Response(MemberSerializer(heir, context=self.get_serializer_context()).data)

    @extend_schema(responses=UsageSerializer(many=True))
    @action(detail=True, pagination_class=None, filter_backends=[])
    def usage(self, request: Request, pk: UUID) -> Response:
        """What the project and you use, and the limits."""
        return Response(UsageSerializer(quotas.usage(self.get_object().pk, self.actor), many=True).data)

    @extend_schema(
        methods=["GET"], operation_id="projects_invitations_list", responses=InvitationSerializer(many=True)
    )
    @extend_schema(
        methods=["POST"],
        operation_id="projects_invitations_create",
        request=InvitationCreateSerializer,
        responses={201: InvitationLinkSerializer},
    )
    @action(detail=True, methods=["get", "post"], pagination_class=None, filter_backends=[])
    def invitations(self, request: Request, pk: UUID) -> Response:
        """Open invitations; invite an address. The link goes there by mail and is shown in this answer only; the account
        that accepts must have that address."""
        project = self.get_object()
        require(self.actor, Action.MANAGE, project)
        if request.method == "GET":
            rows = project.invitations.filter(state=Invitation.State.OPEN).select_related("created_by")
            return Response(InvitationSerializer(rows, many=True).data)
        data = InvitationCreateSerializer(data=request.data)
        data.is_valid(raise_exception=True)
        invitation, link = invitations.invite(actor=self.actor, project=project, **data.validated_data)
        shown = InvitationLinkSerializer({"invitation": invitation, "link": link})
        return Response(shown.data, status=status.HTTP_201_CREATED, headers={"Cache-Control": "no-store"})

    @extend_schema(operation_id="projects_invitations_revoke", responses={204: None})
    @action(
        detail=True,
        methods=["delete"],
        url_path="invitations/<uuid:invitation_id>",
        url_name="invitation",
    )
    def invitation(self, request: Request, pk: UUID, invitation_id: UUID) -> Response:
        """Take an invitation back."""
        project = self.get_object()
        require(self.actor, Action.MANAGE, project)
        invitations.revoke(
            actor=self.actor, invitation=get_or_404(project.invitations.all(), pk=invitation_id)
        )
        return Response(status=status.HTTP_204_NO_CONTENT)


class MyUsageView(APIView):
    """What the reader uses, over all projects."""

    @extend_schema(operation_id="me_usage", responses=OwnUsageSerializer(many=True))
    def get(self, request: Request) -> Response:
        """What you use of every limited resource, in all projects, and your limits (0: none)."""
        mine = quotas.usage_of(quotas.Holder("user", cast("User", request.user).pk))
        return Response(OwnUsageSerializer(mine, many=True).data)


def _text(request: Request) -> str:
    data = InvitationTextSerializer(data=request.data)
    data.is_valid(raise_exception=True)
    return str(data.validated_data["text"])


class InvitationLookView(APIView):
    """What a link offers; the link is enough to see it."""

    permission_classes = (AllowAny,)

    @extend_schema(
        operation_id="invitations_look",
        request=InvitationTextSerializer,
        responses={200: InvitationOfferSerializer, 404: ErrorResponseSerializer},
    )
    def post(self, request: Request) -> Response:
        """Project, role and address of an open invitation. A POST, so that the secret stays out of logs."""
        text = _text(request)
        found = invitations.by_link(text)
        offer = {
            "project_name": found.project.name,
            "email": found.email,
            "role": found.role,
            "invited_by": found.created_by.username if found.created_by is not None else None,
            "expires_at": found.expires_at,
            "may_sign_up": may_sign_up(text),
        }
        return Response(InvitationOfferSerializer(offer).data)


class InvitationAcceptView(APIView):
    """Taking an invitation."""

    token_scopes: ClassVar[TokenScopes] = {"post": None}

    @extend_schema(
        operation_id="invitations_accept",
        request=InvitationTextSerializer,
        responses={200: ProjectSerializer, 404: ErrorResponseSerializer},
    )
    def post(self, request: Request) -> Response:
        """Become a member of the project."""
        user = cast("User", request.user)
        membership = invitations.accept(actor=user, text=_text(request))
        project = Project.objects.visible_to(user).with_role(user).get(pk=membership.project_id)
        return Response(ProjectSerializer(project).data)


class InvitationDeclineView(APIView):
    """Refusing an invitation."""

    permission_classes = (AllowAny,)

    @extend_schema(
        operation_id="invitations_decline",
        request=InvitationTextSerializer,
        responses={204: None, 404: ErrorResponseSerializer},
    )
    def post(self, request: Request) -> Response:
        """Say no; nobody needs an account for that."""
        actor = request.user if request.user.is_authenticated else None
        invitations.decline(actor=actor, text=_text(request))
        return Response(status=status.HTTP_204_NO_CONTENT)
