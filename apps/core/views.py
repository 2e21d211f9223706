"""Base classes of the API's views."""

from __future__ import annotations

from typing import Any, cast
from uuid import UUID

from django.db.models import Model, QuerySet
from drf_spectacular.utils import OpenApiParameter
from rest_framework import routers, serializers
from rest_framework.request import Request
from rest_framework.viewsets import GenericViewSet

from apps.core.errors import NotVisible, Refused

MAX_KEY = 200
IDEMPOTENT = [
    OpenApiParameter(
        "Idempotency-Key",
        str,
        OpenApiParameter.HEADER,
        description="The same key again gets the answer of the first request instead of a second job.",
    )
]


class Routes(routers.SimpleRouter):
    """Routes without a trailing slash whose ids must be UUIDs."""

    def __init__(self) -> None:
        super().__init__(trailing_slash=False, use_regex_path=False)


class VisibleViewSet(GenericViewSet[Any]):
    """A view set over the rows the user may see; everything else does not exist for it.

    Subclasses set ``model``, whose manager has ``visible_to(user)``.
    """

    model: type[Model]
    lookup_value_converter = "uuid"

    @property
    def actor(self) -> Any:
        """Who is asking, as services want to know it. Anonymous requests never get as far as a view."""
        return self.request.user

    def get_queryset(self) -> QuerySet[Any]:
        """Visible rows, as the app's query set prepares them."""
        manager: Any = self.model._default_manager
        if getattr(self, "swagger_fake_view", False):
            return cast("QuerySet[Any]", manager.none())
        return cast("QuerySet[Any]", manager.visible_to(self.request.user))

    def filter_queryset(self, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Filters are for lists; one row is found by its id alone."""
        return super().filter_queryset(queryset) if self.action == "list" else queryset


class VisibleField(serializers.PrimaryKeyRelatedField[Any]):
    """A foreign key in a request: it must point at something the user may see.

    What exists elsewhere and what does not exist get the same answer.
    """

    def __init__(self, model: type[Model], **kwargs: Any) -> None:
        self.model = model
        manager: Any = model._default_manager
        super().__init__(queryset=manager.none(), **kwargs)

    def get_queryset(self) -> QuerySet[Any]:
        """Visible rows of the model."""
        manager: Any = self.model._default_manager
        request = self.context.get("request")
        return cast("QuerySet[Any]", manager.none() if request is None else manager.visible_to(request.user))

    def to_internal_value(self, data: Any) -> Any:
        """The object; ids that are no UUIDs point nowhere, too."""
        try:
            UUID(str(data))
        except ValueError:
            self.fail("does_not_exist", pk_value=data)
        return super().to_internal_value(data)


def idempotency_key(request: Request) -> str:
    """The request's ``Idempotency-Key``, or an empty string.

    Raises:
        Refused: ``idempotency_key_too_long``.
    """
    key = request.headers.get("Idempotency-Key", "").strip()
    if len(key) > MAX_KEY:
        raise Refused(
            "idempotency_key_too_long",
            f"The Idempotency-Key has {len(key)} characters; {MAX_KEY} is the limit.",
            status=400,
        )
    return key


def get_or_404(queryset: QuerySet[Any], **lookup: Any) -> Any:
    """The one row, or the API's 404."""
    row = queryset.filter(**lookup).first()
    if row is None:
        raise NotVisible
    return row
