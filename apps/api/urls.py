"""``/api/v1``: the routes of every app that has some, found by name so that a new app changes nothing here."""

from __future__ import annotations

from collections.abc import Iterator

from django.apps import AppConfig, apps
from django.urls import URLPattern, URLResolver, include, path
from django.utils.module_loading import module_has_submodule
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView

from apps.api.pipelines import PipelineViewSet
from apps.api.upstream import UpstreamView
from apps.api.views import HealthView, LineageView
from apps.core.extensions import extensions
from apps.core.views import Routes


def _has_routes(config: AppConfig) -> bool:
    return config.module is not None and module_has_submodule(config.module, "urls")


def _app_routes() -> Iterator[URLPattern | URLResolver]:
    for config in apps.get_app_configs():
        if config.name.startswith("apps.") and config.name != "apps.api" and _has_routes(config):
            yield path("", include(f"{config.name}.urls"))
    for extension in filter(_has_routes, extensions()):
        with extension.named():
            yield path(f"{extension.label}/", include((f"{extension.name}.urls", extension.label)))


routes = Routes()
routes.register("pipelines", PipelineViewSet, basename="pipeline")
urlpatterns = [
    path("healthz", HealthView.as_view(), name="healthz"),
    path("projects/<uuid:pk>/lineage", LineageView.as_view(), name="project-lineage"),
    path("graphs/upstream", UpstreamView.as_view(), name="graph-upstream"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path(
        "docs/",
        SpectacularSwaggerSplitView.as_view(url_name="schema", http_method_names=["get", "head"]),
        name="docs",
    ),
    *routes.urls,
    *_app_routes(),
]
