"""Routes of artifacts."""

from apps.artifacts.tus import UploadViewSet
from apps.artifacts.views import ArtifactViewSet
from apps.core.views import Routes

routes = Routes()
routes.register("artifacts", ArtifactViewSet, basename="artifact")
routes.register("uploads", UploadViewSet, basename="upload")
urlpatterns = routes.urls
