"""Routes of SAEs and evaluations."""

from apps.core.views import Routes
from apps.saes.views import EvaluationViewSet, SaeViewSet

routes = Routes()
routes.register("saes", SaeViewSet, basename="sae")
routes.register("evaluations", EvaluationViewSet, basename="evaluation")
urlpatterns = routes.urls
