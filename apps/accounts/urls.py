"""Routes of people."""

from django.urls import path

from apps.accounts.views import MeView, TicketView, TokenViewSet, TotpQrView
from apps.core.views import Routes

routes = Routes()
routes.register("tokens", TokenViewSet, basename="token")
urlpatterns = [
    path("me", MeView.as_view(), name="me"),
    path("me/totp-qr", TotpQrView.as_view(), name="me-totp-qr"),
    path("ws-tickets", TicketView.as_view(), name="ws-tickets"),
    *routes.urls,
]
