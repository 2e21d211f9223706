"""Routes of features."""

from django.urls import path

from apps.core.views import Routes
from apps.features.views import AnalyseView, FeatureViewSet

routes = Routes()
routes.register("features", FeatureViewSet, basename="feature")
urlpatterns = [path("saes/<uuid:pk>/analyse", AnalyseView.as_view(), name="sae-analyse"), *routes.urls]
