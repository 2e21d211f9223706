"""Routes of project bundles."""

from django.urls import path

from apps.bundles.views import ProjectExportView, ProjectImportView

urlpatterns = [
    path("projects/<uuid:pk>/export", ProjectExportView.as_view(), name="project-export"),
    path("projects/import", ProjectImportView.as_view(), name="project-import"),
]
