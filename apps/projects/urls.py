"""Routes of projects."""

from django.urls import path

from apps.core.views import Routes
from apps.projects.views import (
    InvitationAcceptView,
    InvitationDeclineView,
    InvitationLookView,
    MyUsageView,
    ProjectViewSet,
)

routes = Routes()
routes.register("projects", ProjectViewSet, basename="project")
urlpatterns = [
    *routes.urls,
    path("me/usage", MyUsageView.as_view(), name="me-usage"),
    path("invitations/look", InvitationLookView.as_view(), name="invitation-look"),
    path("invitations/accept", InvitationAcceptView.as_view(), name="invitation-accept"),
    path("invitations/decline", InvitationDeclineView.as_view(), name="invitation-decline"),
]
