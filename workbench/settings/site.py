"""The site: addresses, cookies, applications, pages and static files, and the tokens of machines that watch it."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from apps.core import extensions
from workbench.settings.env import env
from workbench.settings.paths import BASE_DIR, WORKBENCH_FRONTEND_DIR

DEBUG = env.flag("WORKBENCH_DEBUG", False, "Show tracebacks in the browser; never on a shared machine.")
SECRET_KEY = env.secret(
    "WORKBENCH_SECRET_KEY",
    "",
    "Signs sessions. Required in production; generated once into the data folder in development.",
)
WORKBENCH_PUBLIC_URL = env.text(
    "WORKBENCH_PUBLIC_URL",
    "http://127.0.0.1:8000",
    "Address people type; allowed hosts, CSRF and WebSocket origins and cookie flags follow from it.",
).rstrip("/")
public = urlsplit(WORKBENCH_PUBLIC_URL)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ALLOWED_HOSTS: list[str] = sorted(
    {
        public.hostname or "localhost",
        *_LOOPBACK,
        *env.words("WORKBENCH_ALLOWED_HOSTS", (), "More host names the site answers to."),
    }
)
_port = f":{public.port}" if public.port else ""
CSRF_TRUSTED_ORIGINS = sorted(
    {f"{public.scheme}://{public.netloc}", *(f"{public.scheme}://{host}{_port}" for host in _LOOPBACK)}
)
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = public.scheme == "https"
SESSION_COOKIE_SAMESITE = CSRF_COOKIE_SAMESITE = "Lax"
behind_proxy = env.flag(
    "WORKBENCH_BEHIND_PROXY",
    False,
    "There is one proxy in front: its X-Forwarded-Proto and the last address in X-Forwarded-For are believed.",
)
if behind_proxy:
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
# Whose address counts where strangers are limited: without a proxy anybody could write the header.
ALLAUTH_TRUSTED_PROXY_COUNT = int(behind_proxy)
SECURE_SSL_REDIRECT = env.flag("WORKBENCH_SSL_REDIRECT", False, "Answer http with a redirect to https.")
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"

INSTALLED_APPS = [
    "apps.core",
    "apps.audit",
    "apps.accounts",
    "apps.projects",
    "apps.artifacts",
    "apps.notifications",
    "apps.jobs",
    "apps.registry",
    "apps.saes",
    "apps.features",
    "apps.patches",
    "apps.graphs",
    "apps.live",
    "apps.bundles",
    "apps.api",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "allauth",
    "allauth.account",
    "allauth.mfa",
    "allauth.socialaccount",
    "allauth.socialaccount.providers.openid_connect",
    "allauth.headless",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "drf_standardized_errors",
    "channels",
    *extensions.installed(),
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "workbench.middleware.StaticFiles",
    "workbench.middleware.RequestLog",
    "workbench.middleware.StorableText",
    "workbench.middleware.ContentSecurityPolicy",
    "workbench.middleware.SignInBodies",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "allauth.account.middleware.AccountMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "workbench.urls"
ASGI_APPLICATION = "workbench.asgi.application"
APPEND_SLASH = True
TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "workbench" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LANGUAGE_CODE = "en"
TIME_ZONE = "UTC"
USE_I18N = False
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Vite builds with base "/static/", so its files are ordinary static files; index.html is served by workbench.spa.
STATIC_URL = "/static/"
STATICFILES_DIRS = [WORKBENCH_FRONTEND_DIR] if WORKBENCH_FRONTEND_DIR.is_dir() else []
# Served from where they are installed: a few hundred small files, nothing to collect at deployment.
WHITENOISE_USE_FINDERS = True
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_IMMUTABLE_FILE_TEST = r"^/static/assets/.+-[A-Za-z0-9_-]{8,}\.\w+$"


WORKBENCH_METRICS_TOKEN = env.secret(
    "WORKBENCH_METRICS_TOKEN",
    "",
    "Bearer token that may read /metrics besides staff; without it only staff may.",
)
