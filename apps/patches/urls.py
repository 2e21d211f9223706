"""Routes of patches."""

from django.urls import path

from apps.core.views import Routes
from apps.patches.export_views import AdapterViewSet, ExportViewSet
from apps.patches.views import EditKindsView, PatchViewSet

routes = Routes()
routes.register("patches", PatchViewSet, basename="patch")
routes.register("exports", ExportViewSet, basename="export")
routes.register("adapters", AdapterViewSet, basename="adapter")
urlpatterns = [path("edit-kinds", EditKindsView.as_view(), name="edit-kinds"), *routes.urls]
