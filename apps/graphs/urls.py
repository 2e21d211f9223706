"""Routes of graphs."""

from apps.core.views import Routes
from apps.graphs.views import GraphViewSet

routes = Routes()
routes.register("graphs", GraphViewSet, basename="graph")

urlpatterns = routes.urls
