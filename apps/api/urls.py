"""``/api/v1``: the routes of every app that has some, found by name so that a new app changes nothing here."""

from __future__ import annotations

from importlib.util import find_spec

from django.apps import apps
from django.urls import URLPattern, URLResolver, include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from apps.api.pipelines import PipelineViewSet
from apps.api.views import HealthView, LineageView
from apps.core.views import Routes


def _app_routes() -> list[URLPattern | URLResolver]:
    names = [config.name for config in apps.get_app_configs() if config.name.startswith("apps.")]
    return [
        path("", include(f"{name}.urls"))
        for name in names
        if name != "apps.api" and find_spec(f"{name}.urls")
    ]


routes = Routes()
routes.register("pipelines", PipelineViewSet, basename="pipeline")
urlpatterns = [
    path("healthz", HealthView.as_view(), name="healthz"),
    path("projects/<uuid:pk>/lineage", LineageView.as_view(), name="project-lineage"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path(
        "docs/",
        SpectacularSwaggerSplitView.as_view(url_name="schema", http_method_names=["get", "head"]),
        name="docs",
    ),
    *routes.urls,
    *_app_routes(),
]
