"""Routes of patches."""

from apps.core.views import Routes
from apps.patches.export_views import AdapterViewSet, ExportViewSet
from apps.patches.views import PatchViewSet

routes = Routes()
routes.register("patches", PatchViewSet, basename="patch")
routes.register("exports", ExportViewSet, basename="export")
routes.register("adapters", AdapterViewSet, basename="adapter")
urlpatterns = routes.urls
