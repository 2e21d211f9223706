"""Routes of live questions."""

from django.urls import path

from apps.live.views import AttachView, InferenceView

urlpatterns = [
    path("inference", InferenceView.as_view(), name="inference"),
    path("saes/<uuid:pk>/attach", AttachView.as_view(), name="sae-attach"),
]
