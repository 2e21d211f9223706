"""Routes of models, corpora and recordings."""

from apps.core.views import Routes
from apps.registry.views import CorpusViewSet, ModelViewSet, RecordingViewSet

routes = Routes()
routes.register("models", ModelViewSet, basename="model")
routes.register("corpora", CorpusViewSet, basename="corpus")
routes.register("recordings", RecordingViewSet, basename="recording")
urlpatterns = routes.urls
