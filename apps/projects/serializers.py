"""Projects and members as JSON."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from apps.core.etags import EtagField
from apps.projects.models import Invitation, Membership, Project, Role
from apps.projects.quotas import RESOURCES


class ProjectSerializer(serializers.ModelSerializer[Project]):
    """A project. ``role`` is the reader's own; null for staff who are no member."""

    role = serializers.ChoiceField(choices=Role.choices, read_only=True, allow_null=True)
    slug = serializers.SlugField(required=False, max_length=80)
    etag = EtagField()

    class Meta:
        model = Project
        fields = ("id", "name", "slug", "description", "role", "etag", "created_at")
        read_only_fields = ("id", "created_at")


class ProjectUpdateSerializer(serializers.ModelSerializer[Project]):
    """What can be changed of a project."""

    class Meta:
        model = Project
        fields = ("name", "description")


class MemberSerializer(serializers.ModelSerializer[Membership]):
    """A member of a project. The e-mail address is shown to the member and to staff only: names are enough for working
    together, and an owner could collect addresses by adding people."""

    user = serializers.UUIDField(source="user_id", read_only=True)
    username = serializers.CharField(source="user.username", read_only=True)
    email = serializers.EmailField(source="user.email", read_only=True, allow_null=True)

    class Meta:
        model = Membership
        fields = ("user", "username", "email", "role", "created_at")
        read_only_fields = ("created_at",)

    def to_representation(self, instance: Membership) -> dict[str, Any]:
        """As the reader may see it; without a reader, without the address."""
        shown: dict[str, Any] = super().to_representation(instance)
        request = self.context.get("request")
        reader = request.user if request is not None else None
        if reader is None or not (reader.acts_as_staff or reader.pk == instance.user_id):
            shown["email"] = None
        return shown


class MemberAddSerializer(serializers.Serializer[Any]):
    """Who is to become a member."""

    user = serializers.CharField(max_length=254, help_text="User name.")
    role = serializers.ChoiceField(choices=Role.choices)


class MemberRoleSerializer(serializers.Serializer[Any]):
    """A member's new role."""

    role = serializers.ChoiceField(choices=Role.choices)


class InvitationSerializer(serializers.ModelSerializer[Invitation]):
    """An invitation as the project's owners see it."""

    invited_by = serializers.CharField(
        source="created_by.username", default=None, allow_null=True, read_only=True
    )
    expired = serializers.BooleanField(read_only=True)

    class Meta:
        model = Invitation
        fields = ("id", "email", "role", "state", "invited_by", "created_at", "expires_at", "expired")
        read_only_fields = fields


class InvitationCreateSerializer(serializers.Serializer[Any]):
    """Whom to invite, as what."""

    email = serializers.EmailField(max_length=254)
    role = serializers.ChoiceField(choices=Role.choices)


class InvitationLinkSerializer(serializers.Serializer[Any]):
    """An invitation with its link, which is shown this once and sent by mail."""

    invitation = InvitationSerializer()
    link = serializers.CharField()


class InvitationOfferSerializer(serializers.Serializer[Any]):
    """What the holder of a link is offered. ``may_sign_up`` tells whether the link lets them make an account: where
    mail is sent, the one in the mail does and the one its sender was shown does not."""

    project_name = serializers.CharField()
    email = serializers.EmailField()
    role = serializers.ChoiceField(choices=Role.choices)
    invited_by = serializers.CharField(allow_null=True)
    expires_at = serializers.DateTimeField()
    may_sign_up = serializers.BooleanField()


class InvitationTextSerializer(serializers.Serializer[Any]):
    """The last part of the link."""

    text = serializers.CharField(max_length=200)


class TransferSerializer(serializers.Serializer[Any]):
    """The member who is to own the project instead of you."""

    user = serializers.UUIDField()


class OwnUsageSerializer(serializers.Serializer[Any]):
    """What the reader uses of a resource, over all projects; a limit of 0 is none."""

    resource = serializers.ChoiceField(choices=list(RESOURCES))
    title = serializers.CharField()
    unit = serializers.CharField()
    used = serializers.IntegerField()
    limit = serializers.IntegerField()


class UsageSerializer(OwnUsageSerializer):
    """What a project uses of a resource; limits of 0 are none. ``own_`` is the reader's, over all projects."""

    own_used = serializers.IntegerField()
    own_limit = serializers.IntegerField()
