"""Routes of notifications and webhooks."""

from django.urls import path

from apps.core.views import Routes
from apps.notifications.views import NotificationViewSet, PreferenceView, WebhookViewSet

routes = Routes()
routes.register("notifications", NotificationViewSet, basename="notification")
routes.register("webhooks", WebhookViewSet, basename="webhook")
urlpatterns = [
    path("notifications/preferences", PreferenceView.as_view(), name="notification-preferences"),
    *routes.urls,
]
