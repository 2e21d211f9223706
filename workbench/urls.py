"""URLs: the API, sign-in, the administration, and the browser application for everything else."""

from __future__ import annotations

from allauth.headless.constants import Client
from django.contrib import admin
from django.urls import include, path, re_path

from apps.accounts.signup import SignUpView
from apps.api import operations
from apps.core.errors import not_found
from workbench.spa import admin_sign_in, spa

admin.site.site_header = admin.site.site_title = "InterpretabilityWorkbench"
admin.site.index_title = "Administration"

urlpatterns = [
    path("livez", operations.livez, name="livez"),
    path("readyz", operations.readyz, name="readyz"),
    path("metrics", operations.metrics, name="metrics"),
    path("api/v1/", include("apps.api.urls")),
    # Addresses are changed by staff: trying them here would tell which ones have an account.
    path("_allauth/browser/v1/account/email", not_found, {"exception": None}),
    path("_allauth/browser/v1/account/phone", not_found, {"exception": None}),
    path("_allauth/browser/v1/auth/signup", SignUpView.as_api_view(client=Client.BROWSER)),
    path("_allauth/", include("allauth.headless.urls")),
    path("accounts/", include("allauth.urls")),  # where OpenID Connect comes back to
    path("admin/login/", admin_sign_in),
    path("admin/", admin.site.urls),
    re_path(r"^(?!api/|_allauth/|accounts/|admin/|static/|ws/).*$", spa, name="spa"),
]
handler404 = "apps.core.errors.not_found"
handler500 = "apps.core.errors.server_error"
